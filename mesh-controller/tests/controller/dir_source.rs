//! The `dir` source over real files: what is believed when, and what is said of what cannot be read.

use std::fs;
use std::path::Path;

use crate::common::{entry, namespace, pod};
use mesh_controller::watch::{Batch, Change, DirSource};

fn names(batch: &Batch) -> Vec<String> {
    let name = |change: &Change| match change {
        Change::Apply(key, ..) => format!("+{key}"),
        Change::Undecodable(key, _) => format!("?{key}"),
        Change::Delete(key) => format!("-{key}"),
    };
    let mut names: Vec<_> = batch.changes.iter().map(name).collect();
    names.sort();
    names
}

fn told(batch: &Batch) -> Vec<String> {
    let text = |s: &mesh_controller::object::Status| {
        let file = Path::new(&s.source.to_string()).file_name().unwrap().to_string_lossy().into_owned();
        format!("{file} {} {}", s.reason, s.message)
    };
    batch.statuses.iter().map(text).collect()
}

struct Folder {
    dir: tempfile::TempDir,
    source: DirSource,
}

impl Folder {
    fn new(files: &[(&str, &str)]) -> (Self, Batch) {
        let dir = tempfile::tempdir().unwrap();
        let source = DirSource::new(dir.path());
        let mut folder = Self { dir, source };
        for (name, text) in files {
            folder.write(name, text);
        }
        let first = folder.source.poll().expect("a first batch");
        assert!(folder.source.poll().is_none(), "the second look confirms the first");
        (folder, first)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Two looks: the first sees that something changed, the second believes it.
    fn settle(&mut self) -> Batch {
        assert!(self.source.poll().is_none(), "believed at once");
        self.source.poll().expect("believed at the second look")
    }
}

#[test]
fn files_are_found_at_any_depth_and_other_files_are_not_read() {
    let list = format!(
        r#"{{"apiVersion": "v1", "kind": "List", "items": [{{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": "{}"}}}}]}}"#,
        "listed"
    );
    let (_folder, first) = Folder::new(&[
        ("a.yaml", &namespace("a", true)),
        ("deep/er/b.yml", &[namespace("b", true), pod("x", "n", "10.0.0.1")].concat()),
        ("c.json", &list),
        (".hidden.yaml", "not yaml: ["),
        ("notes.txt", "not yaml: ["),
        ("other.yaml", "# nothing\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\n"),
    ]);
    assert_eq!(names(&first), ["+Namespace a", "+Namespace b", "+Namespace listed", "+Pod shop/x"]);
    assert_eq!(told(&first), Vec::<String>::new());
}

#[test]
fn a_missing_folder_is_a_status_and_not_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("later");
    let mut source = DirSource::new(&path);
    let first = source.poll().unwrap();
    assert_eq!(first.statuses[0].reason, "Unreadable");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), namespace("a", true)).unwrap();
    let batches: Vec<_> = (0..3).filter_map(|_| source.poll()).collect();
    assert!(batches.last().unwrap().statuses.is_empty());
    assert!(batches.iter().any(|b| names(b) == ["+Namespace a"]));
    // Gone again: what was read stays.
    fs::rename(&path, dir.path().join("away")).unwrap();
    let batch = source.poll().unwrap();
    assert_eq!((names(&batch), batch.statuses.len()), (vec![], 1));
}

#[test]
fn a_rename_is_one_change_and_a_file_in_the_making_is_none() {
    let (mut folder, _) = Folder::new(&[("a.yaml", &namespace("a", true))]);
    fs::rename(folder.dir.path().join("a.yaml"), folder.dir.path().join("b.yaml")).unwrap();
    assert_eq!(names(&folder.settle()), ["+Namespace a"], "never away, found elsewhere");

    // A writer that is slower than the looks: only what it ends with is read.
    folder.write("c.yaml", "apiVersion: v1\nkind: Names");
    assert!(folder.source.poll().is_none());
    folder.write("c.yaml", &namespace("c", true));
    assert_eq!(names(&folder.settle()), ["+Namespace c"]);

    fs::remove_file(folder.dir.path().join("b.yaml")).unwrap();
    assert_eq!(names(&folder.settle()), ["-Namespace a"]);
}

#[test]
fn a_document_that_cannot_be_decoded_keeps_its_last_good_version_and_only_that() {
    let policy = |field: &str| {
        format!(
            "---\napiVersion: ferromesh.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\n  namespace: shop\nspec:\n  {field}: DENY\n"
        )
    };
    let (mut folder, first) =
        Folder::new(&[("all.yaml", &[namespace("a", true), policy("action")].concat())]);
    assert_eq!(names(&first), ["+AuthorizationPolicy shop/p", "+Namespace a"]);

    folder.write("all.yaml", &[namespace("a", false), policy("actoin"), namespace("new", true)].concat());
    let batch = folder.settle();
    assert_eq!(names(&batch), ["+Namespace a", "+Namespace new"]);
    let [status] = &told(&batch)[..] else { panic!("{:?}", told(&batch)) };
    assert!(status.starts_with("all.yaml:14 Malformed AuthorizationPolicy shop/p: "), "{status}");
    assert!(status.contains("actoin") && status.ends_with("its last good version is kept"), "{status}");

    // New and bad: nothing to keep.
    folder.write("new.yaml", &policy("actoin").replace("name: p", "name: q"));
    let batch = folder.settle();
    assert_eq!(names(&batch), ["?AuthorizationPolicy shop/q"]);
    assert!(told(&batch).iter().any(|s| s.ends_with("it is not in force")));

    // Taken away is taken away.
    folder.write("all.yaml", &namespace("a", false));
    let batch = folder.settle();
    assert!(names(&batch).starts_with(&["-AuthorizationPolicy shop/p".into()]), "{:?}", names(&batch));
}

#[test]
fn a_file_whose_objects_cannot_be_told_apart_stays_as_it_was() {
    let good = [namespace("a", true), namespace("b", true)].concat();
    let (mut folder, _) = Folder::new(&[("all.yaml", &good)]);
    for (bad, line) in [
        (format!("{}---\nkind: Namespace\n", namespace("a", false)), 8),
        (format!("{}---\n{{ broken", namespace("a", false)), 8),
        ("\u{0}".to_string(), 1),
    ] {
        folder.write("all.yaml", &bad);
        let batch = folder.settle();
        assert_eq!(names(&batch), Vec::<String>::new());
        let told = told(&batch);
        assert!(told.iter().any(|s| s.contains("the file's last good state is kept")), "{told:?}");
        assert!(told.iter().any(|s| s.starts_with(&format!("all.yaml:{line} "))), "{told:?} at {line}");
    }
    folder.write("all.yaml", &good.replace("\"true\"", "\"false\""));
    assert_eq!(names(&folder.settle()), ["+Namespace a", "+Namespace b"]);
}

#[test]
fn wrong_types_unknown_fields_and_duplicates_are_told_with_their_lines() {
    let wrong = pod("x", "n", "10.0.0.1").replace("nodeName: n", "nodeName: n\n  hostNetwork: perhaps");
    let unknown = pod("y", "n", "10.0.0.2").replace("nodeName: n", "nodName: n");
    let (_folder, first) = Folder::new(&[
        ("a.yaml", &namespace("a", true)),
        ("b.yaml", &["# a comment\n".into(), namespace("b", true), namespace("a", false)].concat()),
        ("wrong.yaml", &wrong),
        ("unknown.yaml", &unknown),
    ]);
    let told = told(&first);
    assert!(told[0].starts_with("b.yaml:9 DuplicateName Namespace a is also at "), "{told:#?}");
    assert!(told[0].ends_with("a.yaml:2, which wins"), "{told:#?}");
    assert!(told[1].starts_with("unknown.yaml:10 UnknownField Pod shop/y: field spec.nodName"), "{told:#?}");
    assert!(told[2].starts_with("wrong.yaml:11 Malformed Pod shop/x: "), "{told:#?}");
    assert_eq!(told.len(), 3);
}

fn policy(action: &str) -> String {
    format!(
        "---\napiVersion: ferromesh.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\n  namespace: shop\nspec:\n  action: {action}\n"
    )
}

/// A controller's first batch over `files` whose last good objects are in `state`.
fn started(folder: &Path, state: &Path, files: &[(&str, &str)]) -> Batch {
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
    DirSource::new(folder).keeping(state).poll().expect("a first batch")
}

#[test]
fn a_restart_over_a_malformed_file_keeps_its_last_good_state_and_names_the_line() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = state.path().join("last-good.json");
    let whole = [namespace("a", true), policy("DENY")].concat();
    let good = started(dir.path(), &file, &[("all.yaml", &whole), ("b.yaml", &namespace("b", true))]);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    // One document is bad: only it stays as it was.
    let bad = [namespace("a", true), policy("[DENY")].concat();
    let after = started(dir.path(), &file, &[("all.yaml", &[namespace("a", true), policy("Deny")].concat())]);
    assert_eq!(names(&after), names(&good));
    let policies = |batch: &Batch| {
        let found = batch.changes.iter().find_map(|change| match change {
            Change::Apply(key, object, origin) if key.to_string().contains("shop/p") => {
                Some((object, origin))
            }
            _ => None,
        });
        format!("{:?}", found.expect("the policy"))
    };
    assert_eq!(policies(&after), policies(&good));
    assert!(
        told(&after).iter().any(|s| s.starts_with("all.yaml:14 ") && s.contains("is kept")),
        "{:?}",
        told(&after)
    );

    // The file cannot be told apart at all: it stays whole, also after a second restart.
    for _ in 0..2 {
        let after = started(dir.path(), &file, &[("all.yaml", &bad)]);
        assert_eq!(names(&after), names(&good));
        assert!(
            told(&after).iter().any(|s| s.contains("the file's last good state is kept")),
            "{:?}",
            told(&after)
        );
    }

    // What was taken away meanwhile is gone, and what is good again counts as it is written.
    fs::remove_file(dir.path().join("b.yaml")).unwrap();
    let after = started(dir.path(), &file, &[("all.yaml", &namespace("a", false))]);
    assert_eq!(names(&after), ["+Namespace a"]);
    assert_eq!(told(&after), Vec::<String>::new());
}

#[test]
fn a_policy_that_has_the_form_but_cannot_be_honoured_keeps_its_last_good_version_over_a_restart() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = state.path().join("last-good.json");
    let good = started(dir.path(), &file, &[("p.yaml", &policy("DENY"))]);
    let empty = policy("DENY") + "  rules:\n  - from:\n    - source:\n        principals: []\n";
    let after = started(dir.path(), &file, &[("p.yaml", &empty)]);
    assert_eq!(names(&after), names(&good));
    let told = told(&after);
    assert!(told[0].starts_with("p.yaml:12 Malformed AuthorizationPolicy shop/p: spec.rules[0]"), "{told:?}");
    assert!(told[0].ends_with("its last good version is kept"), "{told:?}");
}

#[test]
fn an_entry_without_a_unit_keeps_its_last_good_version_over_a_restart_and_names_the_line() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = state.path().join("last-good.json");
    let good = started(dir.path(), &file, &[("db.yaml", &entry("db", "host-1"))]);
    assert_eq!((names(&good), told(&good)), (vec!["+WorkloadEntry shop/db".to_owned()], vec![]));
    for (bad, want) in [
        (
            ("unit: db.service", "unit: ../db.service"),
            "db.yaml:10 Malformed WorkloadEntry shop/db: spec.unit: ",
        ),
        (("unit: db.service", "unit: db.socket"), "db.yaml:10 Malformed WorkloadEntry shop/db: spec.unit: "),
        (("node: host-1", "node: Host"), "db.yaml:9 Malformed WorkloadEntry shop/db: spec.node: "),
        (("unit: db", "units: db"), "db.yaml:10 Malformed WorkloadEntry shop/db: "),
    ] {
        let after = started(dir.path(), &file, &[("db.yaml", &entry("db", "host-1").replace(bad.0, bad.1))]);
        assert_eq!(names(&after), names(&good), "{bad:?}");
        let told = told(&after);
        assert!(told[0].starts_with(want) && told[0].ends_with("is kept"), "{told:?}");
    }
}

#[test]
fn damaged_last_good_objects_are_not_used_and_told() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = state.path().join("last-good.json");
    started(dir.path(), &file, &[("p.yaml", &policy("DENY"))]);
    let text = fs::read_to_string(&file).unwrap();
    for damaged in
        [&text[..text.len() / 2], "", "{}", &text.replace("DENY", "DANY"), &text.replace(":1,", ":9,")]
    {
        fs::write(&file, damaged).unwrap();
        let after = started(dir.path(), &file, &[("p.yaml", &policy("[DENY"))]);
        assert_eq!(names(&after), Vec::<String>::new(), "{damaged}");
    }
}
