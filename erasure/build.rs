//! Links ISA-L when the feature asks for it, and says what to install when it isn't there.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_ISAL").is_none() {
        return;
    }
    // pkg-config only adds a search path for libraries outside the linker's own; without
    // pkg-config a plain -lisal still finds the distribution's.
    match Command::new("pkg-config").args(["--libs-only-L", "libisal"]).output() {
        Ok(found) if found.status.success() => {
            for word in String::from_utf8_lossy(&found.stdout).split_whitespace() {
                if let Some(folder) = word.strip_prefix("-L") {
                    println!("cargo:rustc-link-search=native={folder}");
                }
            }
        }
        Ok(_) => println!(
            "cargo:warning=pkg-config knows no libisal: install libisal-dev, or build without the feature `isal`"
        ),
        Err(_) => {}
    }
    println!("cargo:rustc-link-lib=isal");
}
