//! Programs of other languages and C libraries see true addresses as well: Python, Go, Java, and C with musl.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::apps;
use serde_json::Value;

use crate::shop::{NAMES, Shop, VIP, VIP6};

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("mesh/programs").join(name)
}

fn build(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Runs the program as a client of the names server, over each family; it prints one JSON object with what it saw and
/// what the server answered.
fn client_sees_the_truth(shop: &Shop, program: &[&str]) -> Result<()> {
    for (host, dialled, own) in [
        (VIP, format!("{VIP}:{NAMES}"), shop.web.at(0)),
        (VIP6, format!("[{VIP6}]:{NAMES}"), shop.web.at6(0)),
    ] {
        let port = NAMES.to_string();
        let mut arguments = program[1..].to_vec();
        arguments.extend([host, &port]);
        let told = shop.web.run(program[0], &arguments)?.json()?;
        let text =
            |value: &Value| value.as_str().unwrap_or_default().replace("[::ffff:", "").replacen("]:", ":", 1);
        let clean = |value: &Value| text(value).replace('[', "");
        let dialled = dialled.replace(['[', ']'], "");
        ensure!(clean(&told["getpeername"]) == dialled, "{program:?}: {told}");
        let own = own.replace(['[', ']'], "");
        let host = own.trim_end_matches('0');
        let name = clean(&told["getsockname"]);
        ensure!(name.starts_with(host), "{program:?}: {told}");
        ensure!(clean(&told["server"]["accept"]) == name, "{program:?}: {told}");
        ensure!(clean(&told["server"]["getpeername"]) == name, "{program:?}: {told}");
    }
    Ok(())
}

#[test]
fn python_go_java_and_musl_programs_see_true_addresses() -> Result<()> {
    let shop = Shop::open()?;
    let folder = &shop.mesh.world.files;
    let python = source("names.py").to_string_lossy().into_owned();
    client_sees_the_truth(&shop, &["python3", &python])?;
    let go = folder.join("names-go");
    build(Command::new("go").args(["build", "-o"]).arg(&go).arg(source("names.go")).envs([
        ("CGO_ENABLED", "0"),
        ("GO111MODULE", "off"),
        ("GOTOOLCHAIN", "local"),
    ]))?;
    client_sees_the_truth(&shop, &[&go.to_string_lossy()])?;
    let musl = folder.join("names-musl");
    build(Command::new("musl-gcc").args(["-static", "-O1", "-o"]).arg(&musl).arg(source("names.c")))?;
    client_sees_the_truth(&shop, &[&musl.to_string_lossy()])?;
    build(Command::new("javac").arg("-d").arg(folder).arg(source("Names.java")))?;
    client_sees_the_truth(&shop, &["java", "-cp", &folder.to_string_lossy(), "Names"])
}

#[test]
fn servers_in_python_and_go_see_the_true_client() -> Result<()> {
    let shop = Shop::open()?;
    let go = shop.mesh.world.files.join("server-go");
    build(Command::new("go").args(["build", "-o"]).arg(&go).arg(source("server.go")).envs([
        ("CGO_ENABLED", "0"),
        ("GO111MODULE", "off"),
        ("GOTOOLCHAIN", "local"),
    ]))?;
    let (python, go) =
        (source("server.py").to_string_lossy().into_owned(), go.to_string_lossy().into_owned());
    for (port, program) in [("7301", vec!["python3", &python, "7301"]), ("7302", vec![go.as_str(), "7302"])] {
        let server = shop.api.spawn("names", program[0], &program[1..])?;
        let number: u16 = port.parse()?;
        apps::listening(&shop.api, number, &server)?;
        for (to, own) in
            [(shop.api.at(number), shop.web.v4.to_string()), (shop.api.at6(number), shop.web.v6.to_string())]
        {
            let told = shop.web.peer(&["talk", "--to", &to])?;
            let name = told["getsockname"].as_str().unwrap_or_default();
            let (_, own_port) = name.rsplit_once(':').unwrap_or_default();
            let seen = told["received"].as_str().unwrap_or_default().to_owned();
            let expected = format!("{own} {own_port}");
            ensure!(
                seen.trim().replace("::ffff:", "") == format!("{expected} {expected}"),
                "{program:?}: {told}"
            );
        }
    }
    Ok(())
}
