//! Whole labs for tests: real processes, no sleeps.
