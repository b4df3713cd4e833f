//! Where origins were found, for the next server: the resolver may say nothing when it is needed.
//!
//! Servers write it on a page that the manager and cop hold: each what it has found, besides what the others have. Those who
//! write at the same time at the worst spoil one of its two places, until somebody writes again.

use crate::manager::page::Page;
use crate::suite::take_one;
use proxy::resolve::{self, Found};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use supervisor::listen_fds::Inherited;

/// The name under which it is handed on.
pub const NAME: &str = "origins";
/// Room for one place in bytes: some thousand names.
const PLACE: u64 = 256 << 10;

/// A new page; `None`: there is no memory for it.
pub fn page() -> Option<OwnedFd> {
    let page = Page::create(NAME, PLACE).inspect_err(|e| log::warn!("event=origins-failed: {e}"));
    page.ok().map(OwnedFd::from)
}

/// What is known of origins, to be had by the servers to come.
#[derive(Clone)]
pub struct Known(Option<Arc<Mutex<Page>>>);

impl Known {
    /// Takes the page out of what was inherited, learns what it says, and writes on it whatever is found from now on.
    pub fn take(inherited: &mut Vec<Inherited>) -> Known {
        let page = take_one(inherited, NAME).map(|fd| Page::open(NAME, PLACE, fd));
        let known = Known(page.map(|page| Arc::new(Mutex::new(page))));
        known.recall();
        let all = known.clone();
        resolve::on_change(Box::new(move || all.write()));
        known
    }

    /// Learns what others have found meanwhile.
    pub fn recall(&self) {
        if let Some(page) = &self.0 {
            learn(&page.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn write(&self) {
        let Some(page) = &self.0 else { return };
        let page = page.lock().unwrap_or_else(PoisonError::into_inner);
        let number = learn(&page) + 1;
        let Ok(text) = serde_json::to_vec(&resolve::found()) else { return };
        if let Err(e) = page.write(number, &text) {
            log::warn!("event=origins-failed: {e}");
        }
    }
}

/// Returns the number of what it says.
fn learn(page: &Page) -> u64 {
    let Some((number, text)) = page.newest() else { return 0 };
    match serde_json::from_slice::<Vec<Found>>(&text) {
        Ok(found) => resolve::recall(found),
        Err(e) => log::warn!("event=origins-unreadable: {e}"),
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_others_have_written_stays_and_what_nobody_can_read_is_written_anew() {
        let page = page().unwrap();
        let open = || Page::open(NAME, PLACE, page.as_fd().try_clone_to_owned().unwrap());
        let now = supervisor::clock::now().as_millis();
        let theirs =
            format!(r#"[{{"host":"theirs.test","port":1,"at_ms":{now},"addresses":["127.0.0.1:1"]}}]"#);
        open().write(1, theirs.as_bytes()).unwrap();
        let known = Known(Some(Arc::new(Mutex::new(open()))));
        known.write();
        let says = || {
            let (number, text) = open().newest().unwrap();
            (number, serde_json::from_slice::<Vec<Found>>(&text).unwrap())
        };
        let is_theirs =
            |f: &Found| f.host == "theirs.test" && f.addresses == ["127.0.0.1:1".parse().unwrap()];
        assert!(says().1.iter().any(is_theirs), "{:?}", says());
        assert_eq!(says().0, 2);
        open().write(3, b"garbage").unwrap();
        known.write();
        assert_eq!(says().0, 4);
        // without a page, everything is as if there were no others
        let mut none = Vec::new();
        Known::take(&mut none).recall();
    }
}
