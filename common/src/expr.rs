//! Evaluates the expressions of probes over an answer: `status == 200`, `json.leader == json.id`.

/// An answer to a probe.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// HTTP status or exit code.
    pub status: i64,
    /// Body or standard output.
    pub text: String,
}

/// A compiled-once expression would be faster; probes run once a second, so text is kept.
///
/// # Errors
/// The expression does not parse or names what the answer does not have.
pub fn is_true(expression: &str, answer: &Answer) -> Result<bool, String> {
    let _ = (expression, answer);
    todo!()
}

/// The expression's value as text.
///
/// # Errors
/// As [`is_true`].
pub fn text(expression: &str, answer: &Answer) -> Result<String, String> {
    let _ = (expression, answer);
    todo!()
}

/// The expression's value as a number; texts of digits count.
///
/// # Errors
/// As [`is_true`], or the value is no number.
pub fn number(expression: &str, answer: &Answer) -> Result<u64, String> {
    let _ = (expression, answer);
    todo!()
}

/// Whether an expression parses.
///
/// # Errors
/// Where and why it does not.
pub fn check(expression: &str) -> Result<(), String> {
    let _ = expression;
    todo!()
}
