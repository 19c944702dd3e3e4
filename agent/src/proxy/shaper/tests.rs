//! The shaper alone: what goes in comes out whole, in order and in time, whatever the rules.
