//! Reads a blueprint file: what a database is made of, and how to run it.

mod probe;
mod role;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use crate::{
    blueprint::{Blueprint, Effect},
    file::{
        fault,
        lab::read_table,
        trial,
        walk::{Item, Section},
    },
    jinja,
    name::{BlueprintName, PortName, RoleName},
    nearest,
    spec::OnCrash,
};

/// A template where it is written.
#[derive(Debug)]
pub(super) struct Written {
    /// Whose nodes render it; empty is every role.
    pub(super) roles: Vec<RoleName>,
    /// How `render` calls it: `args[2]`.
    pub(super) place: String,
    /// Its text.
    pub(super) text: String,
    /// Where it is in the file.
    pub(super) span: Range<usize>,
    /// Whether only nodes that joined render it.
    pub(super) joined: bool,
    /// The values that it can name besides: of an effect.
    pub(super) values: BTreeMap<String, String>,
}

/// What reading a blueprint finds besides the blueprint.
pub(super) struct Reader<'a> {
    /// The file.
    text: &'a str,
    /// Every template whose syntax is right.
    templates: RefCell<Vec<Written>>,
}

/// The part of a blueprint that is being read: who renders its templates.
#[derive(Clone, Copy)]
struct Scope<'a> {
    reader: &'a Reader<'a>,
    roles: &'a [RoleName],
    joined: bool,
    values: &'a BTreeMap<String, String>,
}

/// What templates outside of effects can name besides nodes.
static NO_VALUES: BTreeMap<String, String> = BTreeMap::new();

/// The whole file; `None` where not even a name could be read.
pub(super) fn read_blueprint(root: &Section<'_>, text: &str) -> Option<Blueprint> {
    let reader = Reader { text, templates: RefCell::default() };
    let name = root.get("name");
    if name.is_none() {
        root.missing("the blueprint has no name", "add name = \"mykv\" at the top");
    }
    let summary = root.get("summary");
    if summary.is_none() {
        root.missing("the blueprint has no summary", "add summary = \"our key-value store\"");
    }
    let on_crash = root
        .get("on_crash")
        .and_then(|item| item.choice(&[("stay", OnCrash::Stay), ("restart", OnCrash::Restart)]));
    let before = root.problems().count();
    let roles = read_table(root, "role", |item| role::read_role(item, &reader));
    if roles.is_empty() && root.problems().count() == before {
        root.missing("the blueprint has no role", "add [role.NAME] with program and count");
    }
    let effects = read_effects(root, &reader);
    root.finish();
    let blueprint = Blueprint {
        name: name.and_then(|item| item.parsed::<BlueprintName>()).or_else(|| "x".parse().ok())?,
        summary: summary.and_then(|item| item.filled_text()).unwrap_or_default().to_owned(),
        on_crash: on_crash.unwrap_or_default(),
        roles,
        effects,
    };
    check_references(root, &blueprint);
    // A role that could not be read would make every template that names it look wrong.
    if root.problems().count() == before {
        let templates = reader.templates.into_inner();
        let untold = trial::render_all(&blueprint, text, &templates, root.problems());
        check_split(root, &blueprint, &untold);
    }
    Some(blueprint)
}

fn read_effects(root: &Section<'_>, reader: &Reader<'_>) -> BTreeMap<String, Effect> {
    let section = root.get("effect").and_then(|item| item.section());
    let mut effects = BTreeMap::new();
    for item in section.iter().flat_map(Section::items) {
        if let Err(error) = PortName::parse(&item.name) {
            item.wrong_key(format!("{:?} is not an effect's name: {}", item.name, error.why), None);
        }
        let Some(section) = item.section() else { continue };
        let roles = names(&section, "roles");
        let values = fault::texts(&section, "values");
        let scope = Scope { reader, roles: &roles, joined: false, values: &values };
        let half = |which: &'static str| {
            let Some(item) = section.get(which) else {
                let what = format!("effect {} does not say what switches it {which}", item.name);
                section.missing(what, format!("add {which} = {{ http = \"PUT …\" }}"));
                return None;
            };
            let place = format!("effect.{}.{which}", section.path.rsplit('.').next()?);
            probe::read_probe(&item.section()?, &place, scope)
        };
        let on = half("on");
        let restarts = section.get("off").filter(Item::is_text);
        let off = match &restarts {
            Some(item) => item.choice(&[("restart", ())]).map(|()| None),
            None => half("off").map(Some),
        };
        section.finish();
        if let (Some(on), Some(off)) = (on, off) {
            let (roles, values) = (roles.clone(), values.clone());
            effects.insert(item.name.clone(), Effect { roles, values, on, off });
        }
    }
    effects
}

/// A list of role names.
fn names(section: &Section<'_>, field: &'static str) -> Vec<RoleName> {
    let parts = section.get(field).and_then(|item| item.list()).unwrap_or_default();
    parts.iter().filter_map(Item::parsed).collect()
}

/// Roles that are named must exist, and none may wait for itself.
fn check_references(root: &Section<'_>, blueprint: &Blueprint) {
    let known = || blueprint.roles.keys();
    let check = |section: &Section<'_>, field: &'static str| {
        for part in section.get(field).and_then(|item| item.list()).unwrap_or_default() {
            let Some(name) = part.parsed::<RoleName>() else { continue };
            if !blueprint.roles.contains_key(&name) {
                let help = nearest::did_you_mean(name.as_str(), known());
                part.wrong(format!("there is no role {:?}", name.as_str()), help);
            }
        }
    };
    let tables = |name| root.get(name).filter(Item::is_table).and_then(|item| item.section());
    for item in tables("role").iter().flat_map(Section::items).filter(Item::is_table) {
        let Some(section) = item.section() else { continue };
        check(&section, "after");
        check(&section, "restart_with");
        let own = item.name.parse::<RoleName>();
        if own.is_ok_and(|own| waits_for_itself(blueprint, &own)) {
            let message = format!("role {} would wait for itself for ever", item.name);
            item.wrong_key(message, Some("look at after".to_owned()));
        }
    }
    for item in tables("effect").iter().flat_map(Section::items).filter(Item::is_table) {
        if let Some(section) = item.section() {
            check(&section, "roles");
        }
    }
}

/// A node that is told no address of its own cannot be told apart from its proxy.
fn check_split(root: &Section<'_>, blueprint: &Blueprint, untold: &BTreeSet<RoleName>) {
    let roles = root.get("role").and_then(|item| item.section());
    for item in roles.iter().flat_map(Section::items) {
        let Some((name, role)) =
            blueprint.roles.iter().find(|(name, _)| name.as_str() == item.name)
        else {
            continue;
        };
        let ports = item.section().and_then(|role| role.get("port")?.section());
        for port in ports.iter().flat_map(Section::items).filter(|_| untold.contains(name)) {
            let Some((port_name, _)) =
                role.ports.iter().find(|(name, rule)| name.as_str() == port.name && rule.proxied)
            else {
                continue;
            };
            let message = format!(
                "port {port_name} cannot be split: nothing that {} is started with names an address to bind it at",
                role.program
            );
            port.wrong(message, Some(trial::split_help(port_name)));
        }
    }
}

fn waits_for_itself(blueprint: &Blueprint, own: &RoleName) -> bool {
    let after = |name: &RoleName| {
        blueprint.roles.get(name).map(|role| role.after.clone()).unwrap_or_default()
    };
    let mut waiting = after(own);
    let mut seen = Vec::new();
    while let Some(name) = waiting.pop() {
        if &name == own {
            return true;
        }
        if !seen.contains(&name) {
            waiting.extend(after(&name));
            seen.push(name);
        }
    }
    false
}

impl Scope<'_> {
    /// Takes a text as a template: its syntax is checked now, its names in the trial.
    fn template(&self, item: &Item<'_>, place: &str) -> Option<String> {
        let text = item.text()?;
        if let Err(error) = jinja::templates().template_from_str(text) {
            let span = trial::inside(self.reader.text, &item.span, text, error.range());
            item.wrong_at(&span, jinja::explain(&error), None);
            return Some(text.to_owned());
        }
        self.reader.templates.borrow_mut().push(Written {
            roles: self.roles.to_vec(),
            place: place.to_owned(),
            text: text.to_owned(),
            span: item.span.clone(),
            joined: self.joined,
            values: self.values.clone(),
        });
        Some(text.to_owned())
    }

    /// Takes a list of templates.
    fn templates(&self, item: &Item<'_>, place: &str) -> Option<Vec<String>> {
        let parts = item.list()?;
        let texts: Vec<Option<String>> = parts
            .iter()
            .enumerate()
            .map(|(i, part)| self.template(part, &format!("{place}[{i}]")))
            .collect();
        texts.into_iter().collect()
    }

    /// Takes a list of templates that is a command: a program at least.
    fn command(&self, item: &Item<'_>, place: &str) -> Option<Vec<String>> {
        if item.is_text() {
            let help = "write [\"program\", \"argument\"]; nothing here goes through a shell";
            item.wrong(format!("{} must be a list", item.name), Some(help.to_owned()));
            return None;
        }
        let argv = self.templates(item, place)?;
        if argv.first().is_none_or(String::is_empty) {
            item.wrong(format!("{} names no program", item.name), None);
            return None;
        }
        Some(argv)
    }
}
