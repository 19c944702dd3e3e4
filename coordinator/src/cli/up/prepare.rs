//! Prepares a local lab before anything runs: its name, its directories, its addresses, `lab.json`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use faultbed_common::name::LabName;

use super::{Plan, etcd};
use crate::cli::{
    Session,
    claim::{self, CLAIMS_DIR, Claims},
    context::{self, CONTEXT_FILE, Context, LAB_DEFAULT, Places},
    failure::Failure,
};

/// Simulated hosts where nobody says how many.
const HOSTS_DEFAULT: u32 = 3;

/// How long another command may hold a lab: a whole `down`, and some.
const LOCK_MAX: Duration = Duration::from_secs(90);

/// Labs of their own that are tried, by number, before giving up.
const FRESH_MAX: u32 = 1000;

/// A lab that is ready to be brought up.
#[derive(Debug, Clone)]
pub struct Lab {
    /// Where and what it is.
    pub context: Context,
    /// It was running before this command.
    pub was_running: bool,
    /// There was nothing of it before this command.
    pub is_new: bool,
}

/// Holds a lab against other commands that start or end it, until dropped.
///
/// # Errors
/// It is held by another for too long.
pub fn lock(places: &Places, name: &LabName) -> Result<File, Failure> {
    let path = places.runtime.join(format!("{name}.lock"));
    let say = |e: std::io::Error| {
        Failure::io(format!("lock lab `{name}` with {}", path.display()), &e)
            .next("ps aux | grep faultbed   # another command may hold it")
    };
    context::make_runtime(&places.runtime)?;
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(say)?;
    claim::flock(&file, LOCK_MAX).map_err(say)?;
    Ok(file)
}

/// A number nobody can guess.
#[must_use]
pub fn dice() -> u32 {
    use rand::{RngCore, SeedableRng};
    rand::rngs::StdRng::from_os_rng().next_u32()
}

/// Chooses or finds the lab, claims its addresses and writes its context.
///
/// # Errors
/// It cannot be had as asked.
pub fn prepare(session: &Session, plan: &Plan) -> Result<Lab, Failure> {
    let places = &session.places;
    let name = choose_name(session, plan)?;
    let _lock = lock(places, &name)?;
    let known = Context::read(&places.lab_dir(&name))?;
    if let Some(context) = known {
        context.must_be_own("up")?;
        return existing(places, plan, context);
    }
    let embedded = plan.args.store.as_ref().is_none_or(|store| store == "embedded");
    if embedded && !plan.args.etcd.is_none() {
        return Err(etcd::without_etcd());
    }
    let hosts = plan.hosts().unwrap_or(HOSTS_DEFAULT);
    if let Some(Err(mistakes)) = plan.file.as_ref().map(|file| file.check_alone(hosts)) {
        // A fresh name was taken by making its directory: nothing is left of a lab that is not begun.
        let _ = fs::remove_dir(places.lab_dir(&name));
        return Err(mistakes);
    }
    let claims = Claims::lock(Path::new(CLAIMS_DIR))?;
    let dir = make_dir(places, &name, plan.args.dir.as_deref())?;
    let octet = claims.claim(None, &name, &dir)?;
    let context = Context {
        version: 1,
        octet,
        runtime: places.lab_runtime(&name),
        store: plan.args.store.clone().unwrap_or_else(|| "embedded".to_owned()),
        hosts,
        token: format!("{:08x}{:08x}", dice(), dice()),
        ephemeral: plan.args.ephemeral,
        terms: u32::from(plan.lifetime().is_some()),
        etcd: plan.args.etcd.absolute()?,
        dir,
        name,
        remote: Vec::new(),
    };
    context.write()?;
    Ok(Lab { context, was_running: false, is_new: true })
}

/// A lab that exists keeps what it is; what contradicts it is refused.
fn existing(places: &Places, plan: &Plan, mut context: Context) -> Result<Lab, Failure> {
    let was_running = context.is_running();
    let name = &context.name;
    let refuse = |what: String| {
        Err(Failure::refused(what)
            .next(context.typed("down --wipe   # begins anew, without its data"))
            .next("faultbed up --lab ANOTHER …"))
    };
    if plan.args.ephemeral && !context.ephemeral {
        return refuse(format!(
            "lab `{name}` has data in {}, which --ephemeral would delete",
            context.dir.display()
        ));
    }
    if let Some(store) = plan.args.store.as_ref().filter(|store| **store != context.store) {
        return refuse(format!(
            "lab `{name}` keeps its state in {}, not in {store}",
            context.store
        ));
    }
    if let Some(dir) = &plan.args.dir {
        let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.clone());
        if dir != context.dir {
            return refuse(format!(
                "lab `{name}` is in {}, not in {}",
                context.dir.display(),
                dir.display()
            ));
        }
    }
    let claims = Claims::lock(Path::new(CLAIMS_DIR))?;
    context.octet = claims.claim(Some(context.octet), &context.name, &context.dir)?;
    if !plan.args.etcd.is_none() {
        if context.store == "embedded" {
            return Err(etcd::without_etcd());
        }
        // Files may have moved, and passwords changed.
        context.etcd = plan.args.etcd.absolute()?;
    }
    if plan.lifetime().is_some() {
        context.terms = context.terms.saturating_add(1);
    }
    // More hosts can join; fewer would lose what runs on the others.
    let asked = plan.hosts().unwrap_or(context.hosts);
    context.hosts = context.hosts.max(asked);
    context.runtime = places.lab_runtime(&context.name);
    context.write()?;
    Ok(Lab { context, was_running, is_new: false })
}

/// The name asked for; for a lab of its own the first that is free; else the usual one.
fn choose_name(session: &Session, plan: &Plan) -> Result<LabName, Failure> {
    if let Some(text) = &session.lab {
        return context::lab_name(text);
    }
    if plan.args.ephemeral {
        return fresh(&session.places);
    }
    let name = context::lab_name(LAB_DEFAULT)?;
    if plan.args.command.is_empty() {
        return Ok(name);
    }
    let runs = Context::read(&session.places.lab_dir(&name))?.is_some_and(|lab| lab.is_running());
    if runs {
        return Err(Failure::refused(format!(
            "lab `{name}` runs already; a command wants a lab of its own"
        ))
        .next("faultbed up FILE --ephemeral -- CMD")
        .next(format!(
            "faultbed up FILE --lab {name} -- CMD   # uses the one that runs, and leaves it"
        )));
    }
    Ok(name)
}

/// The first name of which there is nothing. Making the directory is what takes it.
fn fresh(places: &Places) -> Result<LabName, Failure> {
    let labs = places.state.join("labs");
    fs::create_dir_all(&labs).map_err(|e| Failure::io(format!("make {}", labs.display()), &e))?;
    for number in 1..=FRESH_MAX {
        let text = match number {
            1 => LAB_DEFAULT.to_owned(),
            number => format!("{LAB_DEFAULT}-{number}"),
        };
        let name = context::lab_name(&text)?;
        match fs::create_dir(places.lab_dir(&name)) {
            Ok(()) => return Ok(name),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Failure::io(format!("make {}", labs.display()), &e)),
        }
    }
    Err(Failure::refused(format!("{FRESH_MAX} labs exist already"))
        .next("faultbed context list")
        .next("faultbed down --wipe --lab NAME"))
}

/// Makes the directory of a new lab; one of the user's choice is linked from the usual place.
fn make_dir(places: &Places, name: &LabName, asked: Option<&Path>) -> Result<PathBuf, Failure> {
    let usual = places.lab_dir(name);
    let say = |path: &Path, e: std::io::Error| Failure::io(format!("make {}", path.display()), &e);
    let make = |dir: &Path| {
        fs::create_dir_all(dir).and_then(|()| fs::canonicalize(dir)).map_err(|e| say(dir, e))
    };
    let Some(asked) = asked else {
        // A link whose directory was deleted by hand leads nowhere.
        if fs::symlink_metadata(&usual).is_ok_and(|m| m.is_symlink()) && !usual.exists() {
            fs::remove_file(&usual).map_err(|e| say(&usual, e))?;
        }
        return make(&usual);
    };
    let dir = make(asked)?;
    if let Some(other) = Context::read(&dir)? {
        return Err(Failure::refused(format!(
            "{} is the directory of lab `{}`: {CONTEXT_FILE} says so",
            dir.display(),
            other.name
        ))
        .next(format!("faultbed up --lab {}", other.name)));
    }
    if let Some(labs) = usual.parent() {
        fs::create_dir_all(labs).map_err(|e| say(labs, e))?;
    }
    // An empty directory may be there: it took the name.
    let _ = fs::remove_dir(&usual);
    let _ = fs::remove_file(&usual);
    std::os::unix::fs::symlink(&dir, &usual).map_err(|e| say(&usual, e))?;
    Ok(dir)
}
