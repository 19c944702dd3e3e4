//! Evaluates the expressions of probes over an answer: `status == 200`, `json.leader == json.id`.

pub mod words;

use minijinja::{ErrorKind, Expression, Value, value::ValueKind};

use crate::{jinja, nearest};

/// What an expression can name.
const NAMES: [&str; 3] = ["status", "text", "json"];

/// Most characters of an answer that an error quotes.
const QUOTE_CHARS_MAX: usize = 80;

/// An answer to a probe.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// HTTP status or exit code.
    pub status: i64,
    /// Body or standard output.
    pub text: String,
}

/// A compiled-once expression would be faster; probes run once a second, so text is kept.
/// A part of `json` that is not there equals nothing, and is an error only where its value is
/// needed: JSON gateways leave out zeros.
///
/// # Errors
/// The expression does not parse or names what the answer does not have.
pub fn is_true(expression: &str, answer: &Answer) -> Result<bool, String> {
    let value = evaluate(expression, answer)?;
    if value.is_undefined() {
        return Err(format!("{expression}: the answer does not have it"));
    }
    Ok(value.is_true())
}

/// The expression's value as text.
///
/// # Errors
/// As [`is_true`].
pub fn text(expression: &str, answer: &Answer) -> Result<String, String> {
    let value = evaluate(expression, answer)?;
    if value.is_undefined() || value.is_none() {
        return Err(format!("{expression}: the answer does not have it"));
    }
    Ok(value.to_string())
}

/// The expression's value as a number; texts of digits count, since the JSON gateways of gRPC
/// write numbers of 64 bits as texts. A list counts as its length.
///
/// # Errors
/// As [`is_true`], or the value is no number.
pub fn number(expression: &str, answer: &Answer) -> Result<u64, String> {
    let value = evaluate(expression, answer)?;
    let digits = match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => value.len().map(|n| n as u64),
        ValueKind::Number | ValueKind::String => whole(&value.to_string()),
        ValueKind::Undefined | ValueKind::None => {
            return Err(format!("{expression}: the answer does not have it"));
        }
        _ => None,
    };
    digits.ok_or_else(|| format!("{expression}: {} is not a number", quote(&value.to_string())))
}

/// Whether an expression parses, and names only what answers have and the engine knows: it is tried
/// over an empty answer, since filters and methods are looked up only when they are reached.
///
/// # Errors
/// Where and why it does not.
pub fn check(expression: &str) -> Result<(), String> {
    let scope = scope(&Answer::default(), Value::UNDEFINED);
    let Err(error) = compile(expression)?.eval(scope) else { return Ok(()) };
    match error.kind() {
        ErrorKind::UnknownMethod => Err(format!(
            "{}; values have no methods, but filters, such as text|trim",
            jinja::explain(&error)
        )),
        ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction => {
            Err(jinja::explain(&error))
        }
        // Only of what an empty answer does not have.
        _ => Ok(()),
    }
}

fn compile(expression: &str) -> Result<Expression<'static, 'static>, String> {
    let compiled = jinja::expressions()
        .compile_expression_owned(expression.to_owned())
        .map_err(|error| jinja::explain(&error))?;
    let mut unknown: Vec<String> = compiled
        .undeclared_variables(false)
        .into_iter()
        .filter(|name| !NAMES.contains(&name.as_str()) && !is_global(name))
        .collect();
    unknown.sort();
    let Some(name) = unknown.first() else { return Ok(compiled) };
    Err(match nearest::did_you_mean(name, &NAMES) {
        Some(hint) => format!("{name:?} is not known; {hint}"),
        None => format!("{name:?} is not known; an expression can name status, text and json"),
    })
}

fn is_global(name: &str) -> bool {
    jinja::expressions().globals().any(|(global, _)| global == name)
}

fn evaluate(expression: &str, answer: &Answer) -> Result<Value, String> {
    let compiled = compile(expression).map_err(|why| format!("{expression}: {why}"))?;
    let json = if compiled.undeclared_variables(false).contains("json") {
        let parsed = serde_json::from_str::<serde_json::Value>(&answer.text).map_err(|_| {
            format!("{expression}: the answer is not JSON: {}", quote(&answer.text))
        })?;
        from_json(parsed)
    } else {
        Value::UNDEFINED
    };
    let value = compiled.eval(scope(answer, json));
    value.map_err(|error| format!("{expression}: {}", jinja::explain(&error)))
}

fn scope(answer: &Answer, json: Value) -> Value {
    Value::from_pairs([
        ("status", Value::from(answer.status)),
        ("text", Value::from(answer.text.clone())),
        ("json", json),
    ])
}

/// JSON as the engine's own values.
fn from_json(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(truth) => Value::from(truth),
        Json::Number(number) => {
            if let Some(whole) = number.as_u64() {
                Value::from(whole)
            } else if let Some(whole) = number.as_i64() {
                Value::from(whole)
            } else {
                Value::from(number.as_f64().unwrap_or(f64::NAN))
            }
        }
        Json::String(text) => Value::from(text),
        Json::Array(items) => items.into_iter().map(from_json).collect(),
        Json::Object(fields) => {
            Value::from_pairs(fields.into_iter().map(|(name, value)| (name, from_json(value))))
        }
    }
}

/// A whole number that is not negative, also when written `3.0`.
fn whole(text: &str) -> Option<u64> {
    text.strip_suffix(".0").unwrap_or(text).parse().ok()
}

/// The beginning of an answer, on one line.
fn quote(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTE_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etcd() -> Answer {
        let text = r#"{"header":{"member_id":"10276657743932975437"},"leader":"10276657743932975437","raftTerm":"7","peers":[1,2,3],"lag":-1}"#;
        Answer { status: 200, text: text.to_owned() }
    }

    #[test]
    fn answers_of_a_json_gateway_are_compared_as_they_are_written() {
        let answer = etcd();
        assert_eq!(is_true("status == 200", &answer), Ok(true));
        assert_eq!(is_true("json.leader == json.header.member_id", &answer), Ok(true));
        assert_eq!(is_true("json.leader == json.absent", &answer), Ok(false));
        assert_eq!(is_true("'raftTerm' in text and json.peers|length > 2", &answer), Ok(true));
        assert_eq!(number("json.raftTerm", &answer), Ok(7));
        assert_eq!(number("json.header.member_id", &answer), Ok(10_276_657_743_932_975_437));
        assert_eq!(number("json.peers", &answer), Ok(3));
        assert_eq!(text("json.raftTerm", &answer).unwrap(), "7");
    }

    #[test]
    fn what_cannot_be_read_from_an_answer_is_said_in_words() {
        let mut said = String::new();
        for expression in [
            "json.absent",
            "json.absent.deeper == 1",
            "json.header",
            "json.lag",
            "statsu == 200",
            "status == ",
        ] {
            said += &format!("{}\n", number(expression, &etcd()).unwrap_err());
        }
        let html = Answer { status: 502, text: "<html>\nBad gateway".to_owned() };
        said += &format!("{}\n", is_true("json.ok", &html).unwrap_err());
        expect_test::expect![[r#"
            json.absent: the answer does not have it
            json.absent.deeper == 1: "json.absent" is undefined
            json.header: "{'member_id': '10276657743932975437'}" is not a number
            json.lag: "-1" is not a number
            statsu == 200: "statsu" is not known; did you mean "status"?
            status == : syntax error: unexpected end of input, expected expression
            json.ok: the answer is not JSON: "<html>\nBad gateway"
        "#]]
        .assert_eq(&said);
    }

    #[test]
    fn checks_find_typing_errors_before_anything_runs() {
        let mut said = String::new();
        for expression in [
            "status == 200",
            "range(3)|length == 3",
            "text|trim == 't'",
            "json.list|length > 1 and json.list[0].name == 'a'",
            "text.strip() == 't'",
            "text|strip == 't'",
            "text is blank",
            "sttaus == 2",
            "foo",
            "1 +",
        ] {
            said += &format!("{expression}: {:?}\n", check(expression));
        }
        expect_test::expect![[r#"
            status == 200: Ok(())
            range(3)|length == 3: Ok(())
            text|trim == 't': Ok(())
            json.list|length > 1 and json.list[0].name == 'a': Ok(())
            text.strip() == 't': Err("unknown method: string has no method named strip; values have no methods, but filters, such as text|trim")
            text|strip == 't': Err("unknown filter: filter strip is unknown")
            text is blank: Err("unknown test: test blank is unknown")
            sttaus == 2: Err("\"sttaus\" is not known; did you mean \"status\"?")
            foo: Err("\"foo\" is not known; an expression can name status, text and json")
            1 +: Err("syntax error: unexpected end of input, expected expression")
        "#]]
        .assert_eq(&said);
    }

    #[test]
    fn an_endless_expression_ends() {
        let long = "range(100000)|map('upper')|list|sort|length > range(100000)|sum";
        let loops = format!("{long} or {long}");
        // Only that it returns matters.
        let _ = is_true(&loops, &etcd());
    }
}
