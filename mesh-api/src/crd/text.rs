//! The small grammars inside string fields: patterns, address blocks, times, names of nodes and units.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use mesh_core::model::StringMatch;

/// Reads `x`, `x*`, `*x` or `*`.
pub(super) fn pattern(text: &str) -> Result<StringMatch, String> {
    if text == "*" {
        return Ok(StringMatch::Present);
    }
    let (suffix, rest) = match text.strip_prefix('*') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (prefix, rest) = match rest.strip_suffix('*') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    if rest.is_empty() {
        return Err(format!("{text:?} names nothing"));
    }
    if rest.contains('*') || (prefix && suffix) {
        return Err(format!("{text:?}: a '*' stands at the beginning or at the end, and only once"));
    }
    Ok(match (suffix, prefix) {
        (true, _) => StringMatch::Suffix(rest.into()),
        (_, true) => StringMatch::Prefix(rest.into()),
        _ => StringMatch::Exact(rest.into()),
    })
}

/// Reads a principal: a pattern over SPIFFE IDs without their scheme.
pub(super) fn principal(text: &str) -> Result<StringMatch, String> {
    if text.starts_with("spiffe://") {
        return Err(format!("{text:?}: a principal is written without spiffe://"));
    }
    pattern(text)
}

/// Reads a CIDR block or one address; host bits are cut off, v4-mapped blocks become IPv4.
pub(super) fn ip_block(text: &str) -> Result<IpNet, String> {
    let wrong = |_| format!("{text:?} is neither an address nor a CIDR block");
    let block = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address.to_canonical()),
        Err(_) => text.parse::<IpNet>().map_err(wrong)?.trunc(),
    };
    let IpNet::V6(v6) = block else { return Ok(block) };
    match (v6.network().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
        (Some(v4), Some(length)) => {
            IpNet::new(v4.into(), length).map_err(|_| format!("{text:?} is not a CIDR block"))
        }
        _ => Ok(block),
    }
}

/// Reads `90s`, `5m`, `1h` or `never`. At least a second: the agent gives a sign of life five times in that time.
pub(super) fn lost_after(text: &str) -> Result<Option<Duration>, String> {
    if text == "never" {
        return Ok(None);
    }
    let wrong =
        || format!("{text:?} is not a time: a number of seconds, minutes or hours (90s, 5m, 1h), or never");
    let (number, unit) = text.split_at_checked(text.len().wrapping_sub(1)).ok_or_else(wrong)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    let digits = number.bytes().all(|b| b.is_ascii_digit());
    let seconds = if digits { number.parse::<u32>().ok() } else { None };
    let seconds = seconds.and_then(|number| number.checked_mul(unit)).filter(|seconds| *seconds > 0);
    seconds.map(|seconds| Some(Duration::from_secs(seconds.into()))).ok_or_else(wrong)
}

/// Checks a DNS subdomain, as nodes and service accounts are named.
pub(super) fn subdomain(text: &str) -> Result<(), String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let label = |l: &str| !l.is_empty() && l.bytes().all(inner) && !l.starts_with('-') && !l.ends_with('-');
    if text.len() <= 253 && text.split('.').all(label) {
        return Ok(());
    }
    Err(format!("{text:?} is not a DNS subdomain: at most 253 of a-z, 0-9, '-' and '.'"))
}

/// Checks the name of a systemd service, which becomes the name of a folder. A template alone never runs.
pub(super) fn service_unit(text: &str) -> Result<(), String> {
    let Some(stem) = text.strip_suffix(".service") else {
        return Err(format!("{text:?} does not end in .service"));
    };
    let (name, instance) = stem.split_once('@').unwrap_or((stem, "-"));
    if instance.is_empty() {
        return Err(format!("{text:?} is a template: the unit that runs has its instance behind the '@'"));
    }
    let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'_' | b'.' | b'\\' | b'@' | b'-');
    if !name.is_empty() && text.len() <= 255 && text.bytes().all(known) {
        return Ok(());
    }
    Err(format!("{text:?} is not the name of a unit: at most 255 letters, digits, and of : _ . \\ @ -"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_a_service_that_can_run_and_whose_name_is_no_path() {
        for good in ["db.service", "db@1.service", "a@b@.service", "a\\x2db.service", "A:_.-1.service"] {
            assert_eq!(service_unit(good), Ok(()), "{good}");
        }
        let long = format!("{}.service", "a".repeat(248));
        for bad in [
            "",
            "db",
            "db.socket",
            ".service",
            "@1.service",
            "db@.service",
            "a/b.service",
            "a b.service",
            &long,
        ] {
            assert!(service_unit(bad).is_err(), "{bad:?} was taken");
        }
        assert_eq!(service_unit(&long[1..]), Ok(()));
    }

    #[test]
    fn a_subdomain_is_what_kubernetes_takes_for_one() {
        for good in ["a", "host-1", "host-1.example.org", "0"] {
            assert_eq!(subdomain(good), Ok(()), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", ".a", "a.", "a_b", "a/b", "a b", &"a".repeat(254)] {
            assert!(subdomain(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn the_time_that_an_agent_may_be_lost_has_a_unit_or_is_never() {
        assert_eq!(lost_after("never"), Ok(None));
        assert_eq!(lost_after("90s"), Ok(Some(Duration::from_secs(90))));
        assert_eq!(lost_after("2h"), Ok(Some(Duration::from_secs(7200))));
        for bad in ["", "s", "0s", "5", "-1s", "+1s", "1d", "5 m", "99999999999s", "4294967295h", "1\u{e4}"] {
            assert!(lost_after(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn patterns_are_read_as_istio_users_write_them() {
        assert_eq!(pattern("*"), Ok(StringMatch::Present));
        assert_eq!(pattern("shop"), Ok(StringMatch::Exact("shop".into())));
        assert_eq!(pattern("shop-*"), Ok(StringMatch::Prefix("shop-".into())));
        assert_eq!(pattern("*/sa/api"), Ok(StringMatch::Suffix("/sa/api".into())));
        for bad in ["", "**", "*x*", "a*b", "x**"] {
            assert!(pattern(bad).is_err(), "{bad:?} was taken");
        }
        assert!(principal("spiffe://cluster.local/ns/a/sa/b").is_err());
    }

    #[test]
    fn address_blocks_are_normalised() {
        assert_eq!(ip_block("10.1.2.3").unwrap().to_string(), "10.1.2.3/32");
        assert_eq!(ip_block("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(ip_block("::ffff:10.1.0.0/112").unwrap().to_string(), "10.1.0.0/16");
        assert_eq!(ip_block("fd00::1/64").unwrap().to_string(), "fd00::/64");
        assert!(ip_block("10.0.0.0/33").is_err());
        assert!(ip_block("shop").is_err());
    }
}
