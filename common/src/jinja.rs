//! The one template engine of templates and expressions: strict, bounded, and with errors for people.

use std::sync::LazyLock;

use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, syntax::SyntaxConfig};

/// Instructions one template or expression may take. A list of a thousand nodes takes some twenty
/// thousand; an endless loop in somebody's blueprint must not hold up everybody's lab.
const FUEL: u64 = 2_000_000;

/// For templates: a name that is not there is a mistake of the blueprint.
static TEMPLATES: LazyLock<Environment<'static>> =
    LazyLock::new(|| environment(UndefinedBehavior::Strict));

/// For expressions: a field that is not there equals nothing, since JSON gateways leave out zeros.
static EXPRESSIONS: LazyLock<Environment<'static>> =
    LazyLock::new(|| environment(UndefinedBehavior::Lenient));

fn environment(undefined: UndefinedBehavior) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_undefined_behavior(undefined);
    env.set_debug(true);
    env.set_fuel(Some(FUEL));
    // Config files are written line by line, and must end as their template ends.
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(true)
        .build();
    if let Ok(syntax) = syntax {
        env.set_syntax(syntax);
    }
    env
}

/// The engine of templates. It holds none; every text is compiled where it is used.
pub(crate) fn templates() -> &'static Environment<'static> {
    &TEMPLATES
}

/// The engine of expressions.
pub(crate) fn expressions() -> &'static Environment<'static> {
    &EXPRESSIONS
}

/// An error in a few words, without names of files that nobody has.
pub(crate) fn explain(error: &Error) -> String {
    // Whatever was asked of a name that is not there, the name is the mistake.
    if let Some(name) = error.detail().and_then(undefined_name) {
        return format!("\"{name}\" is undefined");
    }
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "it takes too long: is there an endless loop?".to_owned(),
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    }
}

/// The name in "… (`node.nmae` is undefined)".
fn undefined_name(detail: &str) -> Option<&str> {
    let (before, _) = detail.rsplit_once("` is undefined")?;
    before.rsplit_once('`').map(|(_, name)| name)
}
