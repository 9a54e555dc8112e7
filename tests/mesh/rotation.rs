//! One root after another, and one intermediate after another, under connections that are open and connections that come.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::Options;
use mesh_tests::world::{Pod, Process};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::Value;

use crate::shop::{ECHO, Shop, VIP, echoed};

/// A hundredth of this is how soon agents ask for certificates of another root.
const LIFE: &str = "5m";
const END: Duration = Duration::from_secs(30);

fn options() -> Options {
    // Longer than the agents need to come back after the controller has started again.
    let controller_arguments = vec!["--root-settle=5s".to_owned(), format!("--node-ttl={LIFE}")];
    Options { svid_ttl: LIFE, controller_arguments, ..Options::default() }
}

/// What goes on all the while: connections that come, and those that stay.
struct Traffic {
    ticker: Process,
}

impl Traffic {
    fn start(from: &Pod) -> Result<Self> {
        let to = format!("{VIP}:{ECHO}");
        let arguments = ["ticker", "--to", &to, "--text", "tick", "--every-ms", "20"];
        Ok(Self { ticker: from.spawn_peer(&arguments)? })
    }

    /// Fails if one of the connections that came did not work.
    fn unharmed(&self) -> Result<()> {
        let ticks = self.ticker.stdout();
        let failed: Vec<_> = ticks.lines().filter(|tick| !tick.contains("\"ok\"")).collect();
        ensure!(failed.is_empty() && ticks.lines().count() > 50, "{failed:?} of {}", ticks.lines().count());
        Ok(())
    }
}

/// A connection that carries a byte each way all the time.
fn staying(from: &Pod, seconds: u64) -> Result<Process> {
    let (to, seconds) = (format!("{VIP}:{ECHO}"), seconds.to_string());
    let pulse = from.spawn_peer(&["pulse", "--to", &to, "--seconds", &seconds])?;
    thread::sleep(Duration::from_millis(500));
    Ok(pulse)
}

/// The names of the authorities under which the agents hold certificates.
fn issuers(shop: &Shop) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for node in [1, 2] {
        let told: Value = serde_json::from_str(&shop.mesh.meshctl(node, &["-o", "json", "status"])?.stdout)?;
        let held = told["agent"]["certificates"]["held"].as_array().context("certificates")?.clone();
        all.extend(held.iter().map(|svid| svid["issuer"].to_string()));
    }
    Ok(all)
}

/// The roots' stages, the one that signs first.
fn stages(shop: &Shop) -> Result<Vec<String>> {
    let told = shop.mesh.operator(&["-o", "json", "ca", "status"])?.success()?;
    let told: Value = serde_json::from_str(&told)?;
    let roots = told["roots"].as_array().context("roots")?;
    Ok(roots.iter().map(|root| root["stage"].as_str().unwrap_or_default().to_owned()).collect())
}

fn until_stages(shop: &Shop, wanted: &[&str]) -> Result<()> {
    shop.mesh.in_force(&format!("the roots to be {wanted:?}"), || {
        let found = stages(shop)?;
        ensure!(found == wanted, "{found:?}");
        Ok(())
    })
}

fn until_signed_by_others(shop: &Shop, before: &BTreeSet<String>) -> Result<()> {
    shop.mesh.in_force("both agents to hold certificates of another authority", || {
        let now = issuers(shop)?;
        ensure!(now.is_disjoint(before), "{now:?} has some of {before:?}");
        Ok(())
    })
}

fn restart_controller(shop: &mut Shop) -> Result<()> {
    shop.mesh.kill_controller();
    shop.mesh.start_controller()
}

#[test]
fn a_root_follows_another_through_restarts_and_no_connection_notices_until_its_own_root_goes() -> Result<()> {
    let mut shop = Shop::open_with(options(), true)?;
    echoed(&shop.ask()?)?;
    let traffic = Traffic::start(&shop.web)?;
    let mut before = staying(&shop.web, 600)?;
    let first = issuers(&shop)?;

    let said = shop.mesh.operator(&["ca", "rotate"])?.success()?;
    ensure!(said.contains("signs when all agents trust it"), "{said}");
    restart_controller(&mut shop)?;
    until_stages(&shop, &["signs", "old"])?;
    until_signed_by_others(&shop, &first)?;
    restart_controller(&mut shop)?;
    until_stages(&shop, &["signs", "old"])?;
    // A pod that had no tunnel before has none that the root before proved: `web` may be given a warm one.
    let late = shop.mesh.pod("shop", "late", 1)?;
    shop.mesh.enrolled(&[&late])?;
    let mut after = staying(&late, 600)?;
    ensure!(before.running(), "cut while its root was trusted: {}", before.stdout());
    // One of `web`'s may be inside a tunnel of the old root in the moment in which that ends.
    traffic.unharmed()?;
    let traffic = Traffic::start(&late)?;
    thread::sleep(Duration::from_secs(1));

    // The old root goes before what it signed has ended: what was proven by it ends, and nothing else.
    let file = shop.mesh.world.files.join("controller/ca/authority.json");
    let mut held: Value = serde_json::from_slice(&fs::read(&file)?)?;
    held["old"][0]["until_unix"] = 1.into();
    fs::write(&file, held.to_string())?;
    until_stages(&shop, &["signs"])?;
    let cut = before.wait(END)?.json()?;
    ensure!(cut["outcome"] == "reset" && cut["beats"].as_u64() > Some(100), "{cut}");
    ensure!(after.running(), "{}", after.stdout());
    echoed(&shop.ask()?)?;
    traffic.unharmed()
}

#[test]
fn in_its_own_time_a_root_follows_another_and_no_connection_of_any_moment_is_cut() -> Result<()> {
    let life = |argument: &str| argument.replace(LIFE, "30s");
    let mut options = options();
    options.controller_arguments = options.controller_arguments.iter().map(|a| life(a)).collect();
    options.svid_ttl = "30s";
    let shop = Shop::open_with(options, true)?;
    let traffic = Traffic::start(&shop.web)?;
    shop.mesh.operator(&["ca", "rotate"])?.success()?;
    // Certificates are renewed at half of their lives, and a tunnel takes connections in the first half of what is left
    // then: six of thirty seconds are left for each.
    let mut staying_ones = Vec::new();
    loop {
        staying_ones.push(staying(&shop.web, 5)?);
        thread::sleep(Duration::from_secs(2));
        let found = stages(&shop)?;
        ensure!(staying_ones.len() < 80, "still {found:?}");
        if found == ["signs"] {
            break;
        }
    }
    staying_ones.push(staying(&shop.web, 5)?);
    let count = staying_ones.len();
    for one in staying_ones {
        let told = one.wait(END)?.json()?;
        ensure!(told["outcome"] == "ok", "{told}");
    }
    eprintln!("{count} connections of five seconds lived through it");
    traffic.unharmed()
}

type Ca = CertifiedIssuer<'static, KeyPair>;

fn params(name: &str, path_len: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params
}

fn intermediate(root: &Ca, name: &str) -> Result<Ca> {
    Ok(CertifiedIssuer::signed_by(params(name, 0), KeyPair::generate()?, root)?)
}

/// As cert-manager writes a Secret and a kubelet mounts it.
fn plug(folder: &Path, intermediate: &Ca, root: &Ca) -> Result<()> {
    fs::write(folder.join("tls.crt"), intermediate.pem())?;
    fs::write(folder.join("tls.key"), intermediate.key().serialize_pem())?;
    Ok(fs::write(folder.join("ca.crt"), root.pem())?)
}

#[test]
fn a_plugged_in_intermediate_takes_over_is_replaced_by_its_owner_and_no_connection_notices() -> Result<()> {
    let mut shop = Shop::open_with(options(), true)?;
    echoed(&shop.ask()?)?;
    let made_here = issuers(&shop)?;
    let traffic = Traffic::start(&shop.web)?;
    let mut stays = staying(&shop.web, 600)?;

    // Its root is trusted first, like any other.
    let folder = shop.mesh.world.files.join("issuer");
    fs::create_dir(&folder)?;
    let root = CertifiedIssuer::self_signed(params("corporate root", 1), KeyPair::generate()?)?;
    plug(&folder, &intermediate(&root, "first")?, &root)?;
    shop.mesh.controller_argument(format!("--issuer-dir={}", folder.display()));
    restart_controller(&mut shop)?;
    until_stages(&shop, &["signs", "old"])?;
    until_signed_by_others(&shop, &made_here)?;
    let named = |name: &str| BTreeSet::from([format!("\"CN={name}\"")]);
    ensure!(issuers(&shop)? == named("first"), "{:?}", issuers(&shop)?);

    // Another of the same root signs at once.
    plug(&folder, &intermediate(&root, "second")?, &root)?;
    until_signed_by_others(&shop, &named("first"))?;
    ensure!(issuers(&shop)? == named("second"), "{:?}", issuers(&shop)?);

    // One that cannot sign is told, and changes nothing.
    fs::write(folder.join("tls.key"), KeyPair::generate()?.serialize_pem())?;
    shop.mesh.in_force("the operator to be told", || {
        let told = shop.mesh.operator(&["ca", "status"])?.stdout;
        ensure!(told.contains("INTERMEDIATE REFUSED") && told.contains("tls.key is not the key"), "{told}");
        Ok(())
    })?;

    echoed(&shop.ask()?)?;
    ensure!(stays.running(), "{}", stays.stdout());
    traffic.unharmed()
}
