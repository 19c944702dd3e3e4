//! Reaches coordinators on other machines with this user's certificate, and keeps it from ending.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use faultbed_trust::{TrustError, ask, credentials::Credentials, dial::Dialer};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tonic::transport::Channel;

use super::{unix, unreachable};
use crate::cli::{context::Context, failure::Failure, output};

/// What the place of a coordinator of this machine begins with.
const SOCKET: &str = "unix:";

/// After so long without an answer of one coordinator, the next is tried beside it.
const NEXT_AFTER: Duration = Duration::from_millis(300);

/// How long a command is held up by a certificate that has to be renewed.
const RENEW_MAX: Duration = Duration::from_secs(5);

/// A channel to the first coordinator that answers, and which that is. One that is silent, as a machine
/// that is off, holds up nobody: the next one is tried beside it.
///
/// # Errors
/// None does, or there is no certificate to show.
pub(super) async fn connect(context: &Context) -> Result<(Channel, String), Failure> {
    let opened = match context.remote.iter().any(|url| !url.starts_with(SOCKET)) {
        true => Some(open(context).await?),
        false => None,
    };
    let dialer = opened.as_ref().map(|(dialer, _)| dialer);
    let mut rest = context.remote.iter();
    let mut dials = FuturesUnordered::new();
    let mut whys = Vec::new();
    loop {
        match rest.next() {
            Some(url) => dials.push(dial(dialer, url)),
            None if dials.is_empty() => return Err(unreachable(context, &whys.join("; "))),
            None => {}
        }
        tokio::select! {
            Some(dialled) = dials.next() => match dialled {
                Ok(reached) => {
                    if let Some((dialer, held)) = &opened
                        && dialer.has_news(&held.ca)
                    {
                        // The lab's CA was replaced. What does not work now is tried again next time.
                        let _ = renew(context, dialer, held, &reached.1).await;
                    }
                    return Ok(reached);
                }
                Err(why) => whys.push(why),
            },
            () = tokio::time::sleep(NEXT_AFTER), if rest.len() > 0 => {}
        }
    }
}

async fn dial(dialer: Option<&Dialer>, url: &str) -> Result<(Channel, String), String> {
    let channel = match (url.strip_prefix(SOCKET), dialer) {
        (Some(socket), _) => unix(socket.as_ref()).await?,
        (None, Some(dialer)) => {
            dialer.connect(url, |endpoint| endpoint).await.map_err(|error| error.to_string())?
        }
        (None, None) => return Err(format!("there is no certificate to show to {url}")),
    };
    Ok((channel, url.to_owned()))
}

/// What connections are made with; a certificate that nears its end is renewed first.
async fn open(context: &Context) -> Result<(Dialer, Credentials), Failure> {
    let say = |error: TrustError| {
        Failure::unreachable(format!(
            "show who you are to lab `{}`: {error}; ask an admin of it for \
             `faultbed user token NAME`",
            context.name
        ))
    };
    let held = Credentials::read(&context.identity_dir()).map_err(say)?;
    let dialer = Dialer::new(&held).map_err(say)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if now >= held.facts().map_err(say)?.renew_at_unix_s() {
        for url in context.remote.iter().filter(|url| url.starts_with("https://")) {
            if renew(context, &dialer, &held, url).await.map_err(say)? {
                break;
            }
        }
    }
    Ok((dialer, held))
}

/// Renews the certificate at one coordinator; false where that one does not.
async fn renew(
    context: &Context,
    dialer: &Dialer,
    held: &Credentials,
    url: &str,
) -> Result<bool, TrustError> {
    let renewing = ask::renew(dialer, url, held);
    let Ok(Ok((renewed, issued))) = tokio::time::timeout(RENEW_MAX, renewing).await else {
        return Ok(false);
    };
    renewed.write(&context.identity_dir()).and_then(|()| dialer.replace(&renewed))?;
    // Coordinators may have come since; where this cannot be kept, those known still serve.
    let _ = Context { remote: issued.urls, ..context.clone() }.write();
    output::say(format!("renewed the certificate for lab `{}`", context.name));
    Ok(true)
}
