//! Whether a coordinator is on the line: what the session knows and the loop must hear of.

use tokio::sync::watch;

/// The session's end.
#[derive(Debug, Clone)]
pub struct Line(watch::Sender<bool>);

/// The loop's end.
#[derive(Debug)]
pub struct Heard(watch::Receiver<bool>);

/// Both ends, with nobody on the line yet.
#[must_use]
pub fn line() -> (Line, Heard) {
    let (send, receive) = watch::channel(false);
    (Line(send), Heard(receive))
}

impl Line {
    /// A stream to a coordinator is open.
    pub fn is_up(&self) {
        self.set(true);
    }

    /// It is lost.
    pub fn is_down(&self) {
        self.set(false);
    }

    /// Only what changes is news: each try in vain would else look like a word that was heard.
    fn set(&self, is_up: bool) {
        self.0.send_if_modified(|held| std::mem::replace(held, is_up) != is_up);
    }
}

impl Default for Line {
    /// One that nobody listens to.
    fn default() -> Self {
        line().0
    }
}

impl Heard {
    /// Whether a coordinator is heard now.
    #[must_use]
    pub fn now(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when that changes; never where the session is gone. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Default for Heard {
    /// One that never changes.
    fn default() -> Self {
        line().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tries_in_vain_are_no_news() {
        let (line, mut heard) = line();
        line.is_up();
        heard.changed().await;
        assert!(heard.now());
        line.is_down();
        heard.changed().await;
        assert!(!heard.now());
        line.is_down();
        let again = tokio::time::timeout(std::time::Duration::from_millis(20), heard.changed());
        assert!(again.await.is_err(), "it was down before");
    }
}
