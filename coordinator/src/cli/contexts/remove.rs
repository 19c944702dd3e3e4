//! `context remove`: forgets a lab that others run. The lab is not asked, so it may be gone.

use std::{fs, io};

use faultbed_common::trust::Who;
use faultbed_trust::credentials::Credentials;

use crate::cli::{
    context::{self, CONTEXT_FILE, Context, Places},
    failure::{Failure, with_lab},
    output, status,
};

/// Runs `context remove`.
///
/// # Errors
/// There is no such lab, it is of this machine, or its files cannot be removed.
pub(super) fn run(places: &Places, labs: &[Context], name: &str) -> Result<(), Failure> {
    let name = context::lab_name(name)?;
    let Some(context) = labs.iter().find(|lab| lab.name == name) else {
        let known: Vec<&str> = labs.iter().map(|lab| lab.name.as_str()).collect();
        let mut failure = status::unknown("lab", name.as_str(), &known);
        failure.next = vec!["faultbed context list".to_owned()];
        return Err(failure);
    };
    if !context.is_remote() {
        return Err(Failure::refused(format!("lab `{name}` is of this machine, with its data"))
            .next(with_lab("faultbed down --wipe", name.as_str())));
    }
    let user = match Credentials::read(&context.identity_dir()).and_then(|held| held.facts()) {
        Ok(facts) => match facts.identity.who {
            Who::User(user, _) => Some(user),
            Who::Host(_) | Who::Coordinator(_) => None,
        },
        Err(_) => None,
    };
    let say = |e: io::Error| Failure::io(format!("remove {}", context.dir.display()), &e);
    // The key first: without it nothing else of this is worth anything.
    there(fs::remove_dir_all(context.identity_dir())).map_err(say)?;
    there(fs::remove_file(context.dir.join(CONTEXT_FILE))).map_err(say)?;
    // What else somebody has put there stays.
    let _ = fs::remove_dir(&context.dir);
    if places.current().as_ref() == Some(&name) {
        places.forget_current()?;
    }
    output::say(format!("lab `{name}` is forgotten here; it goes on where it is"));
    if let Some(user) = user {
        output::say(format!(
            "who else has that key is {user} still; an admin ends that with: faultbed user \
             remove {user}"
        ));
    }
    Ok(())
}

/// What is not there need not be removed.
fn there(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(()) => Ok(()),
        Err(error) => Err(error),
    }
}
