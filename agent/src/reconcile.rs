//! One pass: observe, plan (pure), execute, report.
