//! The maps that an earlier agent left pinned. In: the pins, and the maps that this agent's kernel programs want. Out: the
//! pins are adopted as they are, made anew where nothing of worth is lost, or refused: then nothing has changed, and what
//! the earlier agent left goes on keeping the pods closed.

use std::fs;
use std::path::Path;

use aya::maps::{MapInfo, MapType};
use aya_obj::Object;

use super::object::InterceptError;

/// Maps that begin anew when they have another layout: what is in them is over within seconds, is written again from the
/// snapshot and the listeners, or is only counted. All others say who is enrolled, or what a socket shows.
const RENEWABLE: [&str; 10] = [
    "HELD",
    "HELD_EVENTS",
    "ORIG_DST",
    "CLIENTS",
    "LISTENERS",
    "UNSERVED",
    "LISTENING",
    "SEEDED",
    "HEARTBEAT",
    "REASONS",
];

/// Looks at every pinned map that one of `objects` uses, before any of them is loaded. The names of those that begin anew.
pub(super) fn check(pin_dir: &Path, objects: &[&[u8]]) -> Result<Vec<String>, InterceptError> {
    let mut renewed = Vec::new();
    for object in objects {
        let object = Object::parse(object).map_err(|e| InterceptError::Object(e.to_string()))?;
        for (name, wanted) in &object.maps {
            let pin = pin_dir.join(name);
            if !pin.exists() || renewed.contains(name) || same(&MapInfo::from_pin(&pin)?, wanted) {
                continue;
            }
            if !RENEWABLE.contains(&name.as_str()) {
                return Err(InterceptError::OtherLayout(name.clone()));
            }
            renewed.push(name.clone());
        }
    }
    // Only now, when none is refused. The programs that are attached keep the old ones until they are swapped.
    for name in &renewed {
        let pin = pin_dir.join(name);
        fs::remove_file(&pin).map_err(InterceptError::io(format!("removing {}", pin.display())))?;
        tracing::warn!(map = name, "a map of an earlier agent has another layout: it begins anew");
    }
    Ok(renewed)
}

fn same(held: &MapInfo, wanted: &aya_obj::Map) -> bool {
    // The kernel rounds the size of a ring.
    let ring = held.map_type().is_ok_and(|kind| kind == MapType::RingBuf);
    held.map_type().is_ok_and(|kind| kind as u32 == wanted.map_type())
        && held.key_size() == wanted.key_size()
        && held.value_size() == wanted.value_size()
        && (ring || held.max_entries() == wanted.max_entries())
}
