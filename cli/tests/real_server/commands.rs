//! The commands as people type them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use serde_json::Value;

use crate::harness::{Cluster, Shape, bytes};

#[test]
fn real_commands_copy_list_move_and_remove() {
    let cluster = Cluster::started(&Shape { device_mib: 64, ..Shape::default() });
    let source = cluster.path("source");
    fs::create_dir_all(source.join("a/b")).expect("directories");
    for (name, len) in [("empty", 0), ("a/small", 100), ("a/b/larger", 3 << 20)] {
        fs::write(source.join(name), bytes(len as u64, len)).expect("a file");
    }
    fs::set_permissions(source.join("a/small"), fs::Permissions::from_mode(0o640)).expect("mode");
    std::os::unix::fs::symlink("small", source.join("a/link")).expect("a link");
    let from = source.display().to_string();

    let line = cluster.bbctl_good(&["--json", "cp", "-rp", &from, "bb:/tree"]);
    let summary: Value = serde_json::from_str(&line).expect("JSON");
    let figure = |name: &str| summary[name].as_u64().expect("a number");
    assert_eq!((figure("files"), figure("directories"), figure("skipped")), (3, 3, 1), "{line}");
    assert_eq!(figure("bytes"), 100 + (3 << 20));

    assert_eq!(cluster.bbctl_good(&["ls", "/tree"]), "a\nempty\n");
    let long = cluster.bbctl_good(&["ls", "-l", "bb:/tree/a"]);
    assert!(long.contains("-rw-r-----") && long.contains(" 100 "), "{long}");
    assert!(cluster.bbctl_good(&["stat", "/tree/a/b/larger"]).contains("Size: 3145728"));
    assert_eq!(cluster.bbctl(&["cat", "/tree/a/small"]).stdout, bytes(100, 100));

    let back = cluster.path("back");
    cluster.bbctl_good(&["cp", "-rp", "bb:/tree", &back.display().to_string()]);
    assert_eq!(fs::read(back.join("a/b/larger")).expect("read"), bytes(3 << 20, 3 << 20));
    let facts = |path: &std::path::Path| {
        let of = fs::metadata(path).expect("is there");
        (of.mode(), of.mtime(), of.mtime_nsec())
    };
    for name in ["empty", "a", "a/small", "a/b", "a/b/larger"] {
        assert_eq!(facts(&source.join(name)), facts(&back.join(name)), "{name}");
    }

    // Several sources at a time: what would overwrite another is refused.
    let other = cluster.path("other");
    fs::create_dir_all(other.join("a")).expect("directories");
    fs::write(other.join("a/small"), b"another").expect("a file");
    fs::write(other.join("a/more"), b"more").expect("a file");
    let (first, second) = (source.join("a"), other.join("a"));
    let (first, second) = (first.display().to_string(), second.display().to_string());
    cluster.bbctl_good(&["mkdir", "/both"]);
    let output = cluster.bbctl(&["cp", "-r", &first, &second, "bb:/both"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("will not overwrite just-created 'bb:/both/a/small'"), "{error}");
    assert_eq!(cluster.bbctl(&["cat", "/both/a/small"]).stdout, bytes(100, 100));
    assert_eq!(cluster.bbctl(&["cat", "/both/a/more"]).stdout, b"more");
    cluster.bbctl_good(&["rm", "-r", "/both"]);

    cluster.bbctl_good(&["mv", "/tree/empty", "/tree/a"]);
    cluster.bbctl_good(&["mkdir", "-p", "/tree/x/y", "/tree/a"]);
    assert_eq!(cluster.bbctl_good(&["ls", "/tree/a"]), "b\nempty\nsmall\n");
    cluster.bbctl_good(&["pin", "-r", "/tree"]);
    assert!(cluster.bbctl_good(&["frag-stat", "/tree/a/small"]).contains("(pinned)"));
    cluster.bbctl_good(&["unpin", "-r", "/tree"]);
    cluster.bbctl_good(&["sync", "-r", "/tree"]);
    cluster.bbctl_good(&["purge", "-r", "/tree"]);
    cluster.bbctl_good(&["prestage", "-r", "/tree"]);
    assert_eq!(cluster.bbctl(&["cat", "/tree/a/small"]).stdout, bytes(100, 100));
    cluster.bbctl_good(&["rm", "-r", "/tree"]);
    assert_eq!(cluster.bbctl_good(&["ls", "/"]), "");
}

#[test]
fn real_commands_fail_with_the_words_and_codes_of_coreutils() {
    let mut cluster = Cluster::started(&Shape { device_mib: 64, ..Shape::default() });
    cluster.bbctl_good(&["mkdir", "/d"]);
    let fails = |words: &[&str], code: i32, said: &str| {
        let output = cluster.bbctl(words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {error}");
        assert!(error.contains(said), "{words:?}: {error}");
    };
    fails(&["stat", "/x"], 1, "bbctl: cannot stat '/x': No such file or directory");
    fails(&["mkdir", "/d"], 1, "bbctl: cannot create directory '/d': File exists");
    fails(&["rm", "/d"], 1, "bbctl: cannot remove '/d': Is a directory");
    fails(&["cp", "bb:/d", "/nowhere"], 1, "-r not specified; omitting directory 'bb:/d'");
    fails(&["cp", "/nowhere", "bb:/x"], 1, "cannot stat '/nowhere': No such file or directory");
    fails(&["cp", "/etc/passwd", "bb:/x/y"], 1, "cannot create 'bb:/x/y': No such file");
    fails(&["cp", "/etc/passwd", "/tmp/x"], 2, "must be in the buffer");
    fails(&["cp", "/etc/passwd"], 2, "Usage");
    fails(&["stat", "relative"], 1, "paths in the buffer are absolute");

    let status = |address: &str| {
        let mut bbadm = Command::new(env!("CARGO_BIN_EXE_bbadm"));
        bbadm.args(["--server", address, "--timeout", "2", "cluster", "status", "--devices"]);
        bbadm.output().expect("bbadm starts")
    };
    let well = status(&cluster.address);
    let text = String::from_utf8_lossy(&well.stdout);
    assert!(text.contains("2+1") && text.contains("device3"), "{text}");
    // All is well, and one server is no redundancy.
    assert_eq!(well.status.code(), Some(3), "{text}");
    assert!(text.contains("protect against the loss of devices only"), "{text}");
    assert!(!text.contains("backing file system:"), "{text}");

    let own = cluster.path("bfs/.burstbay");
    fs::rename(&own, cluster.path("bfs/away")).expect("as if another were mounted");
    let text = String::from_utf8_lossy(&status(&cluster.address).stdout).into_owned();
    assert!(text.contains("node 1: backing file system: "), "{text}");
    fs::rename(cluster.path("bfs/away"), &own).expect("back again");
    let text = String::from_utf8_lossy(&status(&cluster.address).stdout).into_owned();
    assert!(!text.contains("backing file system:"), "{text}");

    cluster.stop();
    let down = status(&cluster.address);
    let said = String::from_utf8_lossy(&down.stderr);
    assert_eq!(down.status.code(), Some(1), "{said}");
    assert!(said.contains("bbadm: cannot connect to"), "{said}");
}

#[test]
fn real_conflicts_with_the_backing_file_system_are_settled_as_the_user_says() {
    let cluster = Cluster::started(&Shape { device_mib: 64, ..Shape::default() });
    let source = cluster.path("source");
    let from = source.display().to_string();
    let settled: [(&str, &[u8]); 2] = [("buffer", b"second"), ("backing", b"changed below")];
    for (winner, bytes) in settled {
        let path = format!("/{winner}");
        let below = cluster.path("bfs").join(winner);
        for text in ["first", "second"] {
            fs::write(&source, text).expect("a file");
            cluster.bbctl_good(&["cp", &from, &format!("bb:{path}")]);
            if text == "first" {
                cluster.bbctl_good(&["sync", &path]);
            }
        }
        fs::write(&below, "changed below").expect("a change behind our back");
        let refused = cluster.bbctl(&["sync", &path]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("force"), "{said}");
        assert_eq!(fs::read(&below).expect("read"), b"changed below");
        assert!(cluster.bbctl_good(&["frag-stat", &path]).contains("changed on the backing"));
        cluster.bbctl_good(&["sync", "--force", winner, &path]);
        assert_eq!(fs::read(&below).expect("read"), bytes, "{winner}");
        assert_eq!(cluster.bbctl(&["cat", &path]).stdout, bytes, "{winner}");
        assert!(!cluster.bbctl_good(&["frag-stat", &path]).contains("changed on the backing"));
    }
}
