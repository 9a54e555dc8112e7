//! When a replica looks again at what it reports. In: compiled states, who leads, when something is due. Out: that it is time.

use std::time::Duration;

use super::lease::Leading;
use crate::serve::CompiledFeed;

/// Waits for a newer state, for another leader, or until something is `due`; `false` when the controller ends.
pub(super) async fn next(feed: &mut CompiledFeed, leading: &mut Leading, due: Option<Duration>) -> bool {
    let pause = async {
        match due {
            Some(after) => tokio::time::sleep(after).await,
            None => std::future::pending().await,
        }
    };
    let changed = tokio::select! {
        changed = feed.changed() => changed,
        changed = leading.changed() => changed,
        () = pause => Ok(()),
    };
    changed.is_ok()
}
