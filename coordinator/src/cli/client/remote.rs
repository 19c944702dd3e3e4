//! Reaches coordinators on other machines with this user's certificate, and keeps it from ending.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use faultbed_trust::{ask, credentials::Credentials, dial::Dialer};
use tonic::transport::Channel;

use super::{unix, unreachable};
use crate::cli::{context::Context, failure::Failure, output};

/// How long a command is held up by a certificate that has to be renewed.
const RENEW_MAX: Duration = Duration::from_secs(5);

/// A channel to the first coordinator that answers, and which that is.
///
/// # Errors
/// None does, or there is no certificate to show.
pub(super) async fn connect(context: &Context) -> Result<(Channel, String), Failure> {
    let mut dialer = None;
    let mut whys = Vec::new();
    for url in &context.remote {
        if let Some(socket) = url.strip_prefix("unix:") {
            match unix(socket.as_ref()).await {
                Ok(channel) => return Ok((channel, url.clone())),
                Err(why) => whys.push(why),
            }
            continue;
        }
        let dialer = match &dialer {
            Some(dialer) => dialer,
            None => dialer.insert(open(context).await?),
        };
        match dialer.connect(url, |endpoint| endpoint).await {
            Ok(channel) => return Ok((channel, url.clone())),
            Err(error) => whys.push(error.to_string()),
        }
    }
    Err(unreachable(context, &whys.join("; ")))
}

/// What connections are made with; a certificate that nears its end is renewed first.
async fn open(context: &Context) -> Result<Dialer, Failure> {
    let dir = context.identity_dir();
    let say = |error: faultbed_trust::TrustError| {
        Failure::unreachable(format!(
            "show who you are to lab `{}`: {error}; ask an admin of it for \
             `faultbed user token NAME`",
            context.name
        ))
    };
    let held = Credentials::read(&dir).map_err(say)?;
    let dialer = Dialer::new(&held).map_err(say)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if now >= held.facts().map_err(say)?.renew_at_unix_s() {
        for url in context.remote.iter().filter(|url| url.starts_with("https://")) {
            let renewing = ask::renew(&dialer, url, &held);
            let Ok(Ok((renewed, _))) = tokio::time::timeout(RENEW_MAX, renewing).await else {
                continue;
            };
            renewed.write(&dir).and_then(|()| dialer.replace(&renewed)).map_err(say)?;
            output::say(format!("renewed the certificate for lab `{}`", context.name));
            break;
        }
    }
    Ok(dialer)
}
