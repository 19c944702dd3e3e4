//! What the store keeps of tokens, members and coordinators, below `pki/`. Decides on tokens, purely.

use faultbed_common::{
    name::HostName,
    trust::{Invited, Joining, Who},
};
use faultbed_trust::certificate::Facts;
use serde::{Deserialize, Serialize};

/// The value of `pki/token/<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// For whom it is.
    pub invited: Invited,
    /// SHA-256 of the secret, in lower-case hex: who reads the store cannot join with it.
    pub secret_sha256: String,
    /// When it ends, in milliseconds since the epoch.
    pub expires_unix_ms: u64,
    /// Who made it.
    pub by: String,
    /// Who used it, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Used>,
}

/// How a token was used up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// As `pki/member/<this>`.
    pub member: String,
    /// The hash of the key that was certified.
    pub key: String,
    /// When, in milliseconds since the epoch.
    pub at_unix_ms: u64,
}

/// The value of `pki/member/host/<name>` and `pki/member/user/<name>`: who may come in. A
/// certificate without its member is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Who let it in.
    pub by: String,
    /// Since when, in milliseconds since the epoch.
    pub since_unix_ms: u64,
    /// What a user may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<faultbed_common::trust::Role>,
    /// The hash of the one key whose certificates count: that of who came in last under the name. A
    /// record without one would let in whoever has any certificate of that name, so it is no record:
    /// its member comes in anew.
    pub key: String,
    /// When the newest certificate of that key ends, in seconds since the epoch: streams that began
    /// under an older one go on until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_unix_s: Option<u64>,
    /// The SHA-256 of the CA that signed that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// The value of `pki/coordinator/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorRecord {
    /// Where it is reached, as `https://HOST:PORT`.
    pub urls: Vec<String>,
}

/// Why a token does not let anybody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// There is none of this id, or the secret is another's.
    #[error(
        "this token is not known here; `faultbed host token` or `faultbed user token` makes a new one"
    )]
    Unknown,
    /// Its time is up.
    #[error(
        "this token has expired; `faultbed host token` or `faultbed user token` makes a new one"
    )]
    Expired,
    /// Somebody else has used it.
    #[error(
        "this token was used before; `faultbed host token` or `faultbed user token` makes a new one"
    )]
    Used,
    /// Neither the token nor who brings it says a name.
    #[error("say the host's name: `faultbed-agent join --name NAME …`")]
    Nameless,
    /// It names another host than who brings it.
    #[error("this token is for another host; leave `--name` away")]
    OtherName,
    /// A machine brings the token of a user.
    #[error(
        "this token is for a user, who runs `faultbed context add` with it, and is still good; \
         `faultbed host token` makes one for a host"
    )]
    ForUser,
    /// A user brings the token of a host.
    #[error(
        "this token is for a host, on which one runs `faultbed-agent join` with it, and is still \
         good; `faultbed user token NAME --role operator` makes one for a user"
    )]
    ForHost,
}

/// Who comes in with a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// Who.
    pub who: Who,
    /// Whether nobody of this name may be in the lab yet: the token names nobody, so whoever has it
    /// must not take the place of another.
    pub must_be_new: bool,
    /// The same token let the same key in before: its answer was lost.
    pub is_repeated: bool,
}

/// Who brings a token.
#[derive(Debug, Clone, Copy)]
pub struct Bearer<'a> {
    /// As what it comes, where it says so.
    pub joining: Option<Joining>,
    /// What it wants to be called.
    pub name: Option<&'a HostName>,
    /// What its machine is called.
    pub machine: Option<&'a HostName>,
    /// The hash of its key.
    pub key: &'a str,
}

/// Decides whether a token lets somebody with this key in, and as whom.
///
/// # Errors
/// It does not.
pub fn admit(
    token: &TokenRecord,
    secret_sha256: &str,
    bearer: &Bearer<'_>,
    now_unix_ms: u64,
) -> Result<Admission, Rejected> {
    if !same(token.secret_sha256.as_bytes(), secret_sha256.as_bytes()) {
        return Err(Rejected::Unknown);
    }
    if now_unix_ms >= token.expires_unix_ms {
        return Err(Rejected::Expired);
    }
    match (&token.invited, bearer.joining) {
        (Invited::User { .. }, Some(Joining::Host)) => return Err(Rejected::ForUser),
        (Invited::Host { .. }, Some(Joining::User)) => return Err(Rejected::ForHost),
        (Invited::User { .. }, Some(Joining::User) | None)
        | (Invited::Host { .. }, Some(Joining::Host) | None) => {}
    }
    let (who, must_be_new) = match &token.invited {
        Invited::User { name, role } => (Who::User(name.clone(), *role), false),
        Invited::Host { name: Some(own), .. } => match bearer.name {
            Some(other) if other != own => return Err(Rejected::OtherName),
            Some(_) | None => (Who::Host(own.clone()), false),
        },
        Invited::Host { name: None, .. } => {
            let name = bearer.name.or(bearer.machine).cloned();
            (Who::Host(name.ok_or(Rejected::Nameless)?), true)
        }
    };
    let is_repeated = match &token.used {
        None => false,
        Some(used) if used.key == bearer.key && used.member == member_of(&who) => true,
        Some(_) => return Err(Rejected::Used),
    };
    Ok(Admission { who, must_be_new, is_repeated })
}

/// What somebody is who shows a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A member, whose streams may go on until then, in seconds since the epoch.
    Member {
        /// When the newest certificate of its key ends.
        until_unix_s: u64,
    },
    /// Nobody of that name has come in, or has this role any more.
    Stranger,
    /// Somebody has come in under that name since, with another key.
    Replaced,
}

/// Judges a certificate by the record of its member.
#[must_use]
pub fn judge(member: Option<&MemberRecord>, shown: &Facts) -> Standing {
    if let Who::Coordinator(_) = shown.identity.who {
        return Standing::Member { until_unix_s: shown.until_unix_s };
    }
    let Some(member) = member else { return Standing::Stranger };
    if member.key != shown.key {
        return Standing::Replaced;
    }
    if !has_role(member, &shown.identity.who) {
        return Standing::Stranger;
    }
    Standing::Member { until_unix_s: shown.until_unix_s.max(member.until_unix_s.unwrap_or(0)) }
}

/// Whether a member may still do what its certificate says. A role that was lowered counts at once.
fn has_role(member: &MemberRecord, who: &Who) -> bool {
    match who {
        Who::User(_, role) => member.role.is_some_and(|held| held >= *role),
        Who::Host(_) | Who::Coordinator(_) => true,
    }
}

/// The record of a member that gets another certificate for its key; `None` where it does not.
#[must_use]
pub fn renewed(
    member: MemberRecord,
    who: &Who,
    key: &str,
    (ca, until_unix_s): (&str, u64),
) -> Option<MemberRecord> {
    if !has_role(&member, who) || member.key != key {
        return None;
    }
    let until_unix_s = Some(until_unix_s.max(member.until_unix_s.unwrap_or(0)));
    Some(MemberRecord { ca: Some(ca.to_owned()), until_unix_s, ..member })
}

/// Where somebody's record is, below `pki/member/`.
#[must_use]
pub fn member_of(who: &Who) -> String {
    match who {
        Who::Host(name) => format!("host/{name}"),
        Who::User(name, _) => format!("user/{name}"),
        Who::Coordinator(name) => format!("coordinator/{name}"),
    }
}

/// Compares without telling by its time where the difference is.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |all, (l, r)| all | (l ^ r)) == 0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use faultbed_common::trust::Role;

    use super::*;

    fn bearer<'a>(name: Option<&'a HostName>, key: &'a str) -> Bearer<'a> {
        Bearer { joining: Some(Joining::Host), name, machine: None, key }
    }

    fn host(name: Option<&str>) -> TokenRecord {
        TokenRecord {
            invited: Invited::Host {
                name: name.map(|name| name.parse().unwrap()),
                labels: BTreeMap::new(),
            },
            secret_sha256: "5ec".to_owned(),
            expires_unix_ms: 1000,
            by: "ada".to_owned(),
            used: None,
        }
    }

    fn used_by(key: &str, token: TokenRecord) -> TokenRecord {
        let used = Used { member: "host/h1".to_owned(), key: key.to_owned(), at_unix_ms: 1 };
        TokenRecord { used: Some(used), ..token }
    }

    #[test]
    fn wrong_late_and_used_tokens_let_nobody_in() {
        let h1 = "h1".parse().unwrap();
        let cases = [
            (host(Some("h1")), "other", None, 999, Rejected::Unknown),
            (host(Some("h1")), "5ec", None, 1000, Rejected::Expired),
            (used_by("k2", host(Some("h1"))), "5ec", None, 999, Rejected::Used),
            (host(None), "5ec", None, 999, Rejected::Nameless),
            (host(Some("h2")), "5ec", Some(&h1), 999, Rejected::OtherName),
        ];
        for (token, secret, name, now, rejected) in cases {
            assert_eq!(admit(&token, secret, &bearer(name, "k1"), now), Err(rejected));
        }
    }

    fn user() -> TokenRecord {
        let invited = Invited::User { name: "ada".parse().unwrap(), role: Role::Operator };
        TokenRecord { invited, ..host(None) }
    }

    fn shown(identity: &str, key: &str) -> Facts {
        let identity = identity.parse().unwrap();
        Facts { identity, key: key.to_owned(), from_unix_s: 0, until_unix_s: 100 }
    }

    fn member(key: &str, until_unix_s: Option<u64>) -> MemberRecord {
        let (by, key) = ("ada".to_owned(), key.to_owned());
        let ca = Some("ca".to_owned());
        MemberRecord { by, since_unix_ms: 1, role: Some(Role::Operator), key, until_unix_s, ca }
    }

    #[test]
    fn a_token_for_others_is_refused_and_says_who_may_use_it() {
        let as_user = Bearer { joining: Some(Joining::User), ..bearer(None, "k") };
        assert_eq!(admit(&host(Some("h1")), "5ec", &as_user, 0), Err(Rejected::ForHost));
        assert_eq!(admit(&user(), "5ec", &bearer(None, "k"), 0), Err(Rejected::ForUser));
        assert!(admit(&user(), "5ec", &as_user, 0).is_ok());
        // Who does not know the secret hears nothing about the token.
        assert_eq!(admit(&user(), "x", &bearer(None, "k"), 0), Err(Rejected::Unknown));
    }

    #[test]
    fn only_the_key_that_came_in_last_counts_and_for_as_long_as_it_was_renewed() {
        let ada = shown("faultbed://prod/user/ada/operator", "k1");
        let stands = |member: &MemberRecord| judge(Some(member), &ada);
        assert_eq!(judge(None, &ada), Standing::Stranger);
        assert_eq!(stands(&member("k2", None)), Standing::Replaced);
        assert_eq!(stands(&member("k1", Some(70))), Standing::Member { until_unix_s: 100 });
        assert_eq!(stands(&member("k1", Some(170))), Standing::Member { until_unix_s: 170 });
        let lowered = MemberRecord { role: Some(Role::Viewer), ..member("k1", None) };
        assert_eq!(stands(&lowered), Standing::Stranger);
    }

    #[test]
    fn a_record_without_a_key_lets_nobody_in() {
        let mut json = serde_json::to_value(member("k1", Some(70))).unwrap();
        assert!(serde_json::from_value::<MemberRecord>(json.clone()).is_ok());
        json.as_object_mut().unwrap().remove("key");
        assert!(serde_json::from_value::<MemberRecord>(json).is_err());
    }

    #[test]
    fn a_renewal_keeps_the_key() {
        let who = Who::User("ada".parse().unwrap(), Role::Operator);
        let after = renewed(member("k1", None), &who, "k1", ("ca", 70)).unwrap();
        assert_eq!(after, member("k1", Some(70)));
        assert_eq!(renewed(after.clone(), &who, "k2", ("ca", 90)), None);
        // A coordinator whose clock is behind does not shorten what another one gave.
        assert_eq!(renewed(after.clone(), &who, "k1", ("ca", 60)), Some(after));
    }

    #[test]
    fn a_lost_answer_is_given_again_to_the_same_key_only() {
        let token = used_by("k1", host(Some("h1")));
        assert!(admit(&token, "5ec", &bearer(None, "k1"), 999).unwrap().is_repeated);
        assert_eq!(admit(&token, "5ec", &bearer(None, "k2"), 999), Err(Rejected::Used));
        // Nor under another name.
        let open = used_by("k1", host(None));
        let other = "h2".parse().unwrap();
        assert_eq!(admit(&open, "5ec", &bearer(Some(&other), "k1"), 999), Err(Rejected::Used));
    }

    #[test]
    fn who_names_itself_must_be_new_to_the_lab() {
        let h1 = "h1".parse().unwrap();
        assert!(admit(&host(None), "5ec", &bearer(Some(&h1), "k"), 0).unwrap().must_be_new);
        assert!(!admit(&host(Some("h1")), "5ec", &bearer(Some(&h1), "k"), 0).unwrap().must_be_new);
    }
}
