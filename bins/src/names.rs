//! Users and groups by name, as they were when the configuration was accepted.
//!
//! They may be kept elsewhere (LDAP, sssd), and asking may take long, fail, or find nobody: a death is no moment to find that
//! out. So each is asked for once, at a start or a reload, and the next manager knows it from the last one.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use supervisor::privileges::{Credentials, UserError};

/// What is known.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Known {
    users: Vec<User>,
    groups: BTreeMap<String, u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct User {
    user: String,
    /// As it was asked for; `None`: the user's own.
    group: Option<String>,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

static KNOWN: Mutex<Known> = Mutex::new(Known { users: Vec::new(), groups: BTreeMap::new() });

fn all() -> MutexGuard<'static, Known> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A user with its groups.
///
/// # Errors
/// As [`Credentials::of`], the first time.
pub fn user(user: &str, group: Option<&str>) -> Result<Credentials, UserError> {
    let is_it = |u: &&User| u.user == user && u.group.as_deref() == group;
    if let Some(u) = all().users.iter().find(is_it) {
        let (uid, gid, groups) = (u.uid, u.gid, u.groups.clone());
        return Ok(Credentials { user: user.to_owned(), uid, gid, groups });
    }
    let found = Credentials::of(user, group)?;
    let Credentials { user, uid, gid, groups } = found.clone();
    all().users.push(User { user, group: group.map(str::to_owned), uid, gid, groups });
    Ok(found)
}

/// A group's number; `None`: there is none of that name.
pub fn group(name: &str) -> Option<u32> {
    if let Some(gid) = all().groups.get(name) {
        return Some(*gid);
    }
    let gid = nix::unistd::Group::from_name(name).ok().flatten()?.gid.as_raw();
    all().groups.insert(name.to_owned(), gid);
    Some(gid)
}

/// For the next manager.
pub fn known() -> Known {
    all().clone()
}

/// What the last manager knew.
pub fn recall(known: Known) {
    *all() = known;
}

/// Does `work` with everybody asked for anew. If it fails, everybody is who he was; and also then who wasn't found is.
///
/// # Errors
/// Those of `work`.
pub fn anew<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let before = std::mem::take(&mut *all());
    let done = work();
    if done.is_err() {
        recall(before);
    } else {
        let mut now = all();
        for u in before.users {
            if !now.users.iter().any(|n| (&n.user, &n.group) == (&u.user, &u.group)) {
                now.users.push(u);
            }
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_known_is_not_asked_for_again_but_by_a_reload() {
        let root = user("root", None).unwrap();
        assert_eq!(user("root", None).unwrap(), root);
        assert!(user("no-such-user", None).is_err() && group("no-such-group").is_none());
        // as if nobody could be asked any more: what the last one knew counts
        let mut told = known();
        assert!(told.users.iter().any(|u| u.user == "root"));
        let away =
            User { user: "away".into(), group: Some("far".into()), uid: 7, gid: 8, groups: vec![8, 9] };
        told.users.push(away);
        told.groups.insert("far".into(), 8);
        let text = serde_json::to_string(&told).unwrap();
        recall(serde_json::from_str(&text).unwrap());
        let away = || user("away", Some("far")).map(|c| (c.uid, c.gid, c.groups));
        assert_eq!((away().unwrap(), group("far")), ((7, 8, vec![8, 9]), Some(8)));
        assert!(user("away", None).is_err(), "with another group it is another question");
        assert!(anew(|| user("away", Some("far"))).is_err(), "a reload asks");
        assert_eq!(away().unwrap().0, 7, "and is refused");
        anew(|| user("root", None)).unwrap();
        assert!(away().is_ok() && group("far").is_none(), "a job's goes on, if nobody knows him");
    }
}
