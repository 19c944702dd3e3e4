//! This host's certificate: shown to coordinators, and renewed while connections go on.

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use faultbed_common::trust::Who;
use faultbed_trust::{
    ask,
    certificate::{Facts, fingerprint},
    credentials::{Credentials, write_private},
    dial::Dialer,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{session::Coordinator, settings::Settings};

/// The longest time between two looks at the certificate's age: wall clocks step.
const LOOK_MAX: Duration = Duration::from_secs(3600);

/// The shortest time between two looks, and between two tries to renew.
const LOOK_MIN: Duration = Duration::from_millis(200);

/// How long one renewal may take at one coordinator.
const RENEW_MAX: Duration = Duration::from_secs(10);

/// How long until a renewal is tried again that is to bring other CAs.
const NEWS_RETRY: Duration = Duration::from_secs(2);

/// The coordinators that renewals told of, in the identity directory; one a line.
const COORDINATORS: &str = "coordinators";

/// The identity of this host.
#[derive(Debug)]
pub struct HostIdentity {
    dir: PathBuf,
    /// What connections are made with.
    pub dialer: Arc<Dialer>,
    /// The hash of the CAs to trust, as the coordinator said last.
    wanted: watch::Sender<Option<String>>,
}

impl HostIdentity {
    /// Reads what `join` wrote.
    ///
    /// # Errors
    /// It is not there, is damaged, or is another host's.
    pub fn open(settings: &Settings) -> anyhow::Result<Self> {
        let dir = settings.identity_dir();
        let again = "get a line from `faultbed host token` and join again";
        let credentials = Credentials::read(&dir).context(again)?;
        let facts = credentials.facts()?;
        let is_ours = facts.identity.lab == settings.lab
            && facts.identity.who == Who::Host(settings.host.clone());
        if !is_ours {
            anyhow::bail!(
                "the certificate in {} is of {}, not of host {} in lab {}; {again}",
                dir.display(),
                facts.identity,
                settings.host,
                settings.lab
            );
        }
        if facts.until_unix_s <= now_unix_s() {
            tracing::error!(
                "the certificate in {} has expired: no coordinator takes it; {again}",
                dir.display()
            );
        }
        let dialer = Arc::new(Dialer::new(&credentials)?);
        Ok(Self { dir, dialer, wanted: watch::Sender::default() })
    }

    /// Hears by their hash which CAs to trust: where those held are others, the certificate is renewed.
    pub fn should_trust(&self, hash: String) {
        self.wanted.send_replace(Some(hash));
    }

    /// The coordinators to try: those of the settings, then those that renewals told of.
    #[must_use]
    pub fn coordinators(&self, settled: &[Coordinator]) -> Vec<Coordinator> {
        let told = fs::read_to_string(self.dir.join(COORDINATORS)).unwrap_or_default();
        let mut all = settled.to_vec();
        for one in told.lines().filter_map(|line| line.parse().ok()) {
            if !all.contains(&one) {
                all.push(one);
            }
        }
        all
    }

    /// Renews the certificate two thirds into its life, and when there are other CAs to trust, and
    /// tries until it works, until `stop`.
    pub async fn keep(self: Arc<Self>, settled: Vec<Coordinator>, stop: CancellationToken) {
        let mut was_told = false;
        let mut wanted = self.wanted.subscribe();
        loop {
            let hash = wanted.borrow_and_update().clone();
            let held = Credentials::read(&self.dir).and_then(|held| {
                let is_news = hash.is_some_and(|hash| hash != fingerprint(held.ca.as_bytes()));
                Ok((held.facts()?, is_news))
            });
            let (wait, is_due) = match held {
                Ok((_, true)) => (NEWS_RETRY, true),
                Ok((facts, false)) => look_again(&facts, now_unix_s()),
                Err(error) => {
                    tracing::error!(%error, "read own certificate");
                    (LOOK_MAX, false)
                }
            };
            if is_due {
                match self.renew(&settled).await {
                    Ok(()) => {
                        tracing::info!("certificate renewed");
                        was_told = false;
                    }
                    Err(error) if was_told => {
                        tracing::debug!(error = format!("{error:#}"), "renew certificate");
                    }
                    Err(error) => {
                        tracing::warn!(error = format!("{error:#}"), "renew certificate");
                        was_told = true;
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _ = wanted.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn renew(&self, settled: &[Coordinator]) -> anyhow::Result<()> {
        let mut last = anyhow::anyhow!("there is no coordinator to ask");
        for coordinator in self.coordinators(settled) {
            let Coordinator::Https(url) = &coordinator else { continue };
            match tokio::time::timeout(RENEW_MAX, self.renew_at(url)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => last = error,
                Err(_) => last = anyhow::anyhow!("{url} does not answer"),
            }
        }
        Err(last)
    }

    async fn renew_at(&self, url: &str) -> anyhow::Result<()> {
        let held = Credentials::read(&self.dir)?;
        let (renewed, issued) = ask::renew(&self.dialer, url, &held).await?;
        self.dialer.replace(&renewed)?;
        renewed.write(&self.dir)?;
        let path = self.dir.join(COORDINATORS);
        write_private(&path, &issued.urls.join("\n"))
            .with_context(|| format!("write {}", path.display()))
    }
}

/// How long until the certificate is looked at again, and whether it is time to renew it.
fn look_again(facts: &Facts, now_unix_s: u64) -> (Duration, bool) {
    let left = Duration::from_secs(facts.renew_at_unix_s().saturating_sub(now_unix_s));
    // Tries come some twenty times before it ends.
    let retry = (facts.lifetime() / 60).clamp(LOOK_MIN, LOOK_MAX);
    if left.is_zero() { (retry, true) } else { (left.clamp(LOOK_MIN, LOOK_MAX), false) }
}

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_two_thirds_into_its_life_and_tried_until_then() {
        let day = 24 * 3600;
        let facts = Facts {
            identity: "faultbed://prod/host/h1".parse().unwrap(),
            key: String::new(),
            from_unix_s: 0,
            until_unix_s: day + 60,
        };
        assert_eq!(facts.lifetime(), Duration::from_secs(60));
        assert_eq!(look_again(&facts, day), (Duration::from_secs(40), false));
        assert!(!look_again(&facts, day + 39).1);
        assert_eq!(look_again(&facts, day + 40), (Duration::from_secs(1), true));
        // A clock that stepped back does not put it off for ever.
        assert_eq!(look_again(&facts, 0).0, LOOK_MAX);
    }
}
