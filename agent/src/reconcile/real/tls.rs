//! The certificate of a node: made on its host, by the CA of its cluster, anew for each start.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use faultbed_common::{
    host_spec::NodeSpec,
    tls::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, TLS_DIR},
};
use faultbed_trust::members;

use super::prepare::{make_dir, own};
use crate::probe::command::Ids;

/// Keys are their user's alone: databases refuse others.
const KEY_MODE: u32 = 0o600;

/// Makes what is missing, as commands before the first start need it too; with `anew` all of it.
pub(super) fn files(
    node_dir: &Path,
    spec: &NodeSpec,
    owner: Option<Ids>,
    anew: bool,
) -> Result<(), String> {
    let Some(tls) = &spec.launch.tls else { return Ok(()) };
    let dir = node_dir.join(TLS_DIR);
    let held = fs::read_to_string(dir.join(CA_FILE)).unwrap_or_default();
    if !anew && held == tls.authority.certificate && dir.join(KEY_FILE).exists() {
        return Ok(());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (key, certificate) = members::certify(tls, now).map_err(|error| error.to_string())?;
    make_dir(&dir, owner)?;
    let files =
        [(CA_FILE, &tls.authority.certificate), (CERTIFICATE_FILE, &certificate), (KEY_FILE, &key)];
    for (name, content) in files {
        let path = dir.join(name);
        write(&path, content, owner)
            .map_err(|error| format!("write {}: {error}", path.display()))?;
    }
    Ok(())
}

/// Never there with another content or for others to read, not for a moment.
fn write(path: &Path, content: &str, owner: Option<Ids>) -> io::Result<()> {
    let draft = path.with_extension("draft");
    fs::write(&draft, "")?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(KEY_MODE))?;
    fs::write(&draft, content)?;
    own(&draft, owner)?;
    fs::rename(draft, path)
}
