//! Compiles the programs of client-lib/c-api/tests and runs them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::harness::now;

/// Folder of the crate.
pub fn crate_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../client-lib/c-api")
}

/// The library, built first if cargo runs us (see `harness::bbd`).
pub fn library() -> PathBuf {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let built = std::env::var_os("BB_TEST_BUILT").is_some();
        let Some(cargo) = std::env::var_os("CARGO").filter(|_| !built) else { return };
        let words = ["build", "--quiet", "--locked", "--package", "bb-capi"];
        let status = Command::new(cargo).args(words).status().expect("cargo starts");
        assert!(status.success(), "bb-capi builds");
    });
    let path = Path::new(env!("CARGO_BIN_EXE_bbctl")).with_file_name("libbb_capi.so");
    assert!(path.exists(), "{} is missing: cargo build -p bb-capi", path.display());
    path
}

/// An installation with compiled programs, and where the cluster is. Removed when dropped.
pub struct Programs {
    directory: PathBuf,
    configuration: PathBuf,
    /// The root of the backing file system.
    pub backing: PathBuf,
}

impl Programs {
    /// For a cluster whose backing file system is at `backing`.
    pub fn new(servers: &str, backing: &Path, timeout_seconds: u32) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("native-{}-{number}", std::process::id());
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(directory.join("lib")).expect("a directory");
        symlink(library(), directory.join("lib/libbb_client.so.1")).expect("a link");
        for name in ["libbb_client.so", "libim_client.so"] {
            symlink("libbb_client.so.1", directory.join("lib").join(name)).expect("a link");
        }
        let configuration = directory.join("ime.conf");
        let text = format!(
            "# as of old\nime_bfs {{\n    mount_point: {};\n}}\nclient {{\n    servers: {servers};\n    \
             command_timeout: {timeout_seconds};\n    init_timeout: 30;\n    \
             rpc_client_timeout: 2;\n}}\n",
            backing.display()
        );
        fs::write(&configuration, text).expect("ime.conf");
        Self { directory, configuration, backing: backing.to_path_buf() }
    }

    /// A file of the installation.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Compiles one, the way that the users' pages show.
    pub fn compiled(&self, program: &str, compiler: &str) -> PathBuf {
        let binary = self.path(program);
        if binary.exists() {
            return binary;
        }
        let folder = crate_folder();
        let output = Command::new(compiler)
            .args([
                "-std=gnu11",
                "-D_GNU_SOURCE",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-Wno-format-truncation",
                "-O1",
                "-g",
                "-I",
            ])
            .arg(folder.join("include"))
            .arg("-L")
            .arg(self.path("lib"))
            .arg("-o")
            .arg(&binary)
            .arg(folder.join("tests").join(program).with_extension("c"))
            .args(["-pthread", "-lim_client"])
            .output()
            .expect("the compiler starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        binary
    }

    /// Not started yet.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.compiled(program, "cc"));
        self.prepare(&mut command);
        command
    }

    /// Gives a command the library and the cluster.
    pub fn prepare(&self, command: &mut Command) {
        command.env("LD_LIBRARY_PATH", self.path("lib")).stdin(Stdio::null());
        command.env("IM_CLIENT_CFG_FILE", &self.configuration);
    }

    /// A new directory of the buffer, as the programs name it, and on the backing file system.
    pub fn place(&self, name: &str) -> (String, PathBuf) {
        let local = self.backing.join(name);
        fs::create_dir(&local).expect("a directory");
        (format!("ime://{}", local.display()), local)
    }

    /// Runs a program, which must succeed, with a directory of its own and these words; what it
    /// prints.
    pub fn run(&self, program: &str, words: &[&str]) -> String {
        let (place, _) = self.place(program);
        self.run_in(program, &[&[place.as_str()], words].concat())
    }

    /// The same, with all its words given.
    pub fn run_in(&self, program: &str, words: &[&str]) -> String {
        let mut command = self.command(program);
        let start = now();
        let output = command.args(words).output().expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} ({}): {errors}", output.status);
        println!("{program}: {:.2} s", start.elapsed().as_secs_f64());
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
