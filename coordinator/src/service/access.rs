//! Who may call what. Pure: a table from calls to the least that a caller must be.

use faultbed_common::trust::{Identity, Role, Who};

/// Who called, as the listener knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The user's name, for owners and the history.
    pub user: String,
    /// Whom the certificate names. `None` is the user of this machine, who may do everything: it came
    /// over the unix socket or with the loopback port's token.
    pub identity: Option<Identity>,
}

impl Caller {
    /// A caller on this machine.
    #[must_use]
    pub fn local(user: String) -> Self {
        Self { user, identity: None }
    }

    /// Who showed a certificate.
    #[must_use]
    pub fn certified(identity: Identity) -> Self {
        let user = match &identity.who {
            Who::User(name, _) => name.to_string(),
            Who::Host(name) => format!("host:{name}"),
            Who::Coordinator(name) => format!("coordinator:{name}"),
        };
        Self { user, identity: Some(identity) }
    }

    /// The role of a user; hosts and coordinators have none.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        match &self.identity {
            None => Some(Role::Admin),
            Some(Identity { who: Who::User(_, role), .. }) => Some(*role),
            Some(_) => None,
        }
    }

    /// Demands a role.
    ///
    /// # Errors
    /// Says which role it takes.
    pub fn must_be(&self, least: Role) -> Result<(), String> {
        if self.role().is_some_and(|role| role >= least) {
            return Ok(());
        }
        let own = match self.role() {
            None => "no user".to_owned(),
            Some(role @ Role::Viewer) => format!("a {role}"),
            Some(role @ (Role::Operator | Role::Admin)) => format!("an {role}"),
        };
        let user = &self.user;
        Err(format!(
            "{user} is {own} of this lab, and this takes the role {least}; an admin gives it with \
             `faultbed user token {user} --role {least}`"
        ))
    }

    /// Demands that an agent speaks for its own host.
    ///
    /// # Errors
    /// The certificate is another's.
    pub fn must_be_host(&self, host: &faultbed_common::name::HostName) -> Result<(), String> {
        match &self.identity {
            None => Ok(()),
            Some(Identity { who: Who::Host(own), .. }) if own == host => Ok(()),
            Some(_) => Err(format!("{} may not speak for host {host}", self.user)),
        }
    }
}

/// That the caller's host was removed from the lab, and why: its session is told that, and no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parting(pub String);

/// The only call of somebody who is no member any more that gets an answer of the service.
#[must_use]
pub fn is_session(path: &str) -> bool {
    path == "/faultbed.v1.Agent/Session"
}

/// What a call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// Nothing: a token is in the call.
    Nothing,
    /// Any certificate of this lab.
    AnyCertificate,
    /// The certificate of a host; which one, the service looks at.
    Host,
    /// A user of at least this role. Services may ask for more, by what is in the call.
    User(Role),
}

/// What the path of a request takes. What is not named here is for admins only.
fn takes(path: &str) -> Takes {
    let Some(call) = path.strip_prefix("/faultbed.v1.") else {
        return match path {
            "/healthz" => Takes::AnyCertificate,
            "/metrics" | "/api/v1/status" | "/api/v1/events" => Takes::User(Role::Viewer),
            // A plan changes nothing; the service looks.
            "/api/v1/edit" => Takes::User(Role::Viewer),
            _ => Takes::User(Role::Admin),
        };
    };
    match call {
        "Trust/Join" => Takes::Nothing,
        "Trust/Renew" => Takes::AnyCertificate,
        // Any user may see which CA there is; the service looks who replaces it.
        "Trust/Authority" => Takes::User(Role::Viewer),
        "Trust/Invite" => Takes::User(Role::Operator),
        "Agent/Session" | "Agent/FetchContent" | "Exec/Attend" | "Trust/Present" => Takes::Host,
        "Operator/ContentHeld" | "Operator/ContentPush" | "Exec/Run" => Takes::User(Role::Operator),
        "Operator/Status" | "Operator/Watch" | "Operator/Get" | "Operator/Events"
        | "Operator/Logs" | "Operator/Edit" => Takes::User(Role::Viewer),
        _ => Takes::User(Role::Admin),
    }
}

/// Why a call over TLS goes no further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// It takes a certificate.
    NoCertificate,
    /// The certificate does not suffice.
    NotEnough(String),
}

/// Decides whether somebody with this certificate may make a call.
///
/// # Errors
/// It may not.
pub fn may(caller: Option<&Caller>, path: &str) -> Result<(), Denied> {
    let takes = takes(path);
    let Some(caller) = caller else {
        return if takes == Takes::Nothing { Ok(()) } else { Err(Denied::NoCertificate) };
    };
    let is_host = matches!(&caller.identity, Some(Identity { who: Who::Host(_), .. }));
    match takes {
        Takes::Nothing | Takes::AnyCertificate => Ok(()),
        Takes::Host if is_host => Ok(()),
        Takes::Host => Err(Denied::NotEnough(format!("{} is no host of this lab", caller.user))),
        Takes::User(least) => caller.must_be(least).map_err(Denied::NotEnough),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(identity: &str) -> Caller {
        Caller::certified(identity.parse().unwrap())
    }

    #[test]
    fn without_a_certificate_one_can_only_join() {
        assert_eq!(may(None, "/faultbed.v1.Trust/Join"), Ok(()));
        for path in [
            "/faultbed.v1.Trust/Renew",
            "/faultbed.v1.Trust/Invite",
            "/faultbed.v1.Agent/Session",
            "/faultbed.v1.Operator/Status",
            "/api/v1/status",
            "/healthz",
            "/faultbed.v1.Trust/Join/../../Operator/Edit",
        ] {
            assert_eq!(may(None, path), Err(Denied::NoCertificate), "{path}");
        }
    }

    #[test]
    fn hosts_have_sessions_and_nothing_of_users() {
        let h1 = caller("faultbed://prod/host/h1");
        assert_eq!(may(Some(&h1), "/faultbed.v1.Agent/Session"), Ok(()));
        assert_eq!(may(Some(&h1), "/faultbed.v1.Agent/FetchContent"), Ok(()));
        for path in ["/faultbed.v1.Operator/Status", "/faultbed.v1.Operator/Edit", "/metrics"] {
            assert!(may(Some(&h1), path).is_err(), "{path}");
        }
        assert!(h1.must_be_host(&"h1".parse().unwrap()).is_ok());
        assert!(h1.must_be_host(&"h2".parse().unwrap()).is_err());
    }

    #[test]
    fn viewers_look_operators_change_and_what_is_unknown_is_for_admins() {
        let viewer = caller("faultbed://prod/user/vi/viewer");
        let operator = caller("faultbed://prod/user/op/operator");
        let admin = caller("faultbed://prod/user/ada/admin");
        assert_eq!(may(Some(&viewer), "/faultbed.v1.Operator/Status"), Ok(()));
        let denied = may(Some(&viewer), "/faultbed.v1.Trust/Invite").unwrap_err();
        let Denied::NotEnough(why) = denied else { panic!("{denied:?}") };
        assert!(why.contains("vi is a viewer") && why.contains("the role operator"), "{why}");
        assert_eq!(may(Some(&operator), "/faultbed.v1.Trust/Invite"), Ok(()));
        assert!(may(Some(&viewer), "/faultbed.v1.Operator/ContentPush").is_err());
        assert_eq!(may(Some(&operator), "/faultbed.v1.Operator/ContentPush"), Ok(()));
        assert_eq!(may(Some(&operator), "/faultbed.v1.Exec/Run"), Ok(()));
        assert!(may(Some(&viewer), "/faultbed.v1.Exec/Run").is_err());
        assert!(may(Some(&admin), "/faultbed.v1.Exec/Attend").is_err());
        assert!(operator.must_be(Role::Admin).is_err());
        assert!(may(Some(&operator), "/faultbed.v1.Operator/Unheard").is_err());
        assert_eq!(may(Some(&admin), "/faultbed.v1.Operator/Unheard"), Ok(()));
        assert!(may(Some(&admin), "/faultbed.v1.Agent/Session").is_err());
    }
}
