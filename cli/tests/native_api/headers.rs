//! Headers: what they compile as, and that the generated one is current.

use std::path::Path;
use std::process::Command;

use crate::harness::not_run;
use crate::programs::{crate_folder, library};

#[test]
fn headers_compile_as_c99_and_cpp17_without_a_warning() {
    let source = crate_folder().join("tests/headers.c");
    for words in [&["cc", "-std=c99"][..], &["c++", "-std=c++17", "-x", "c++"]] {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["-Wall", "-Wextra", "-pedantic", "-Werror"]);
        command.arg("-I").arg(crate_folder().join("include")).arg("-fsyntax-only").arg(&source);
        let Ok(output) = command.output() else { return not_run(words[0]) };
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {errors}");
    }
}

#[test]
fn the_generated_header_is_current() {
    let folder = crate_folder();
    let mut command = Command::new("cbindgen");
    command.current_dir(&folder).args(["--quiet", "--config", "cbindgen.toml", "src/own.rs"]);
    let Ok(output) = command.output() else {
        return not_run("cbindgen 0.29.4: cargo install cbindgen --version 0.29.4 --locked");
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let kept = std::fs::read(folder.join("include/bb_client.h")).expect("the header");
    assert!(
        kept == output.stdout,
        "include/bb_client.h is not what ./x headers makes of src/own.rs"
    );
}

/// Names that a header declares.
fn declared(header: &Path, prefix: &str) -> Vec<String> {
    let text = std::fs::read_to_string(header).expect("the header");
    let calls = text.split(prefix).skip(1);
    let name = |rest: &str| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
        rest[end..].starts_with('(').then(|| format!("{prefix}{}", &rest[..end]))
    };
    let mut names: Vec<String> = calls.filter_map(name).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn the_library_exports_what_its_headers_declare_and_nothing_else() {
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(library()).output();
    let output = output.expect("nm, which comes with the compiler");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let mut exported: Vec<&str> =
        text.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    exported.sort_unstable();
    let include = crate_folder().join("include");
    let mut wanted = declared(&include.join("ime_native.h"), "ime_native_");
    assert_eq!(wanted.len(), 35);
    wanted.extend(declared(&include.join("im_client_native2.h"), "ime_client_native2_"));
    wanted.extend(declared(&include.join("bb_client.h"), "bb_"));
    wanted.sort();
    assert_eq!(exported, wanted);
}
