//! What must hold when everything is healed: all bytes are there, the backing file system gets
//! them, the counts add up, and space comes back.

use std::rc::Rc;
use std::time::Duration;

use bb_client::{ClientOptions, Error};
use bb_proto::meta::Residency;

use crate::chaos::heal;
use crate::counts;
use crate::storm::calm_down;
use crate::watch;
use crate::workload::{Bench, STRANGER, appended_records};
use crate::world::ClientProcess;

/// Time for the background: orphans, releases, the end of dead sessions.
const SETTLE: Duration = Duration::from_secs(90);
/// Most bytes of a file.
const FILE_BYTES: usize = 4 << 20;

/// Runs all checks; what fails is a violation.
pub async fn check_all(bench: &Rc<Bench>) {
    if bench.family.has_nodes() {
        calm_down(bench).await;
    } else {
        heal(bench).await;
    }
    if bench.has_failed() {
        return;
    }
    let options =
        ClientOptions { command_timeout: Duration::from_secs(200), ..ClientOptions::default() };
    let process = match bench.world.connect(options).await {
        Ok(process) => process,
        Err(why) => return bench.violation(format!("the last client cannot connect: {why}")),
    };
    let (bench2, process2) = (bench.clone(), process.clone());
    let checks = process.rt.spawn(async move {
        let result = check(&bench2, &process2).await;
        if let Err(error) = result {
            bench2.violation(format!("after everything was healed: {error}"));
        }
    });
    let _ = checks.await;
    bench.world.kill_client(&process);
    bench.world.kill_client(&process);
}

async fn check(bench: &Rc<Bench>, process: &Rc<ClientProcess>) -> Result<(), Error> {
    let files: Vec<(String, u64)> = (0..bench.names.len())
        .map(|at| bench.names.get(at))
        .filter_map(|slot| slot.file.map(|file| (slot.path, file)))
        .collect();
    for (path, id) in &files {
        read_whole(bench, process, path, *id).await?;
        sync_whole(bench, process, path, *id).await?;
        if bench.has_failed() {
            return Ok(());
        }
    }
    check_appended(bench, process).await?;
    settle(bench).await;
    check_counts(bench, process).await?;
    if bench.family.has_nodes() {
        watch::check_replicas(bench).await;
    }
    remove_all(bench, process).await?;
    settle(bench).await;
    let tally = &bench.world.tally;
    tally.borrow_mut().reconstructed += process.client.reconstructed_blocks();
    check_space(bench, process).await
}

async fn settle(bench: &Bench) {
    bench.rt().sleep(SETTLE).await;
}

async fn read_whole(
    bench: &Bench,
    process: &ClientProcess,
    path: &str,
    id: u64,
) -> Result<(), Error> {
    let begun = bench.tick();
    let file = process.client.open(path.as_bytes(), libc::O_RDONLY, 0).await?;
    let mut bytes = vec![0xEE; FILE_BYTES];
    let got = file.pread(&mut bytes, 0).await?;
    bench.note(|| format!("{path} (f{id}) at last: {got} bytes"));
    let verdict = {
        let model = bench.model.borrow();
        model
            .check_read(id, process.actor, begun, begun, 0, &bytes[..got])
            .and_then(|()| model.check_size(id, process.actor, begun, begun, got as u64))
    };
    bench.judge("the last read", process.actor, verdict);
    file.close().await
}

async fn sync_whole(
    bench: &Bench,
    process: &ClientProcess,
    path: &str,
    id: u64,
) -> Result<(), Error> {
    let file = process.client.open(path.as_bytes(), libc::O_RDONLY, 0).await?;
    let begun = bench.tick();
    file.start(Residency::Sync, 0, 0, 0).await?.wait(|_| {}).await?;
    file.close().await?;
    let Some(bytes) = bench.world.bfs.files().remove(path.as_bytes()) else {
        bench.violation(format!("{path} is not on the backing file system"));
        return Ok(());
    };
    let verdict = {
        let model = bench.model.borrow();
        model
            .check_read(id, STRANGER, begun, begun, 0, &bytes)
            .and_then(|()| model.check_size(id, STRANGER, begun, begun, bytes.len() as u64))
    };
    bench.judge("the backing file system at last", STRANGER, verdict);
    Ok(())
}

async fn check_appended(bench: &Bench, process: &ClientProcess) -> Result<(), Error> {
    let file = match process.client.open(b"/append", libc::O_RDONLY, 0).await {
        Ok(file) => file,
        Err(error) if error.errno() == libc::ENOENT && bench.appended.borrow().is_empty() => {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; 16 << 20];
    let got = file.pread(&mut bytes, 0).await?;
    let found = appended_records(&bytes[..got]);
    for (number, durable) in bench.appended.borrow().iter() {
        let times = found.get(number).copied().unwrap_or(0);
        if times > 1 || *durable && times == 0 {
            bench.violation(format!("record {number} (durable: {durable}) is there {times} times"));
            break;
        }
    }
    file.close().await
}

/// Everything was synchronized: nothing but what nobody can name any more may be dirty.
async fn check_counts(bench: &Bench, process: &ClientProcess) -> Result<(), Error> {
    counts::check_quiet(bench, process).await?;
    let bytes = counts::all_bytes(&counts::status(bench, process).await?);
    bench.note(|| format!("bytes by state: {bytes:?}"));
    if bytes.pending != 0 {
        bench.violation(format!("no sync is under way, and {} bytes are pending", bytes.pending));
    }
    Ok(())
}

async fn remove_all(bench: &Bench, process: &ClientProcess) -> Result<(), Error> {
    for entry in process.client.readdir(b"/").await? {
        let path = [b"/", &entry.name[..]].concat();
        let attributes = process.client.lstat(&path).await?;
        if attributes.mode & libc::S_IFMT == libc::S_IFDIR {
            process.client.rmdir(&path).await?;
        } else {
            process.client.unlink(&path).await?;
        }
    }
    let left = bench.world.bfs.files();
    if !left.is_empty() {
        let names: Vec<_> = left.keys().map(|name| String::from_utf8_lossy(name)).collect();
        bench.violation(format!("still on the backing file system: {names:?}"));
    }
    Ok(())
}

/// With all files gone, no byte is in use, and no name is kept.
async fn check_space(bench: &Bench, process: &ClientProcess) -> Result<(), Error> {
    counts::check_quiet(bench, process).await?;
    let status = counts::status(bench, process).await?;
    let nodes = bench.world.nodes();
    let leftovers = || counts::leftovers(&nodes);
    for device in &counts::devices(&nodes, &status) {
        // A device that failed holds what it held.
        let well = device.problem.is_empty();
        if well && (device.used_bytes != 0 || device.blocks != 0) {
            bench.violation(format!(
                "device {} holds {} blocks, {} bytes, and there is no file: {}",
                device.device,
                device.blocks,
                device.used_bytes,
                leftovers()
            ));
        }
    }
    let bytes = counts::all_bytes(&status);
    if bytes.fragments != 0 {
        let leftovers = leftovers();
        bench.violation(format!(
            "there is no file, and there are fragments: {bytes:?}: {leftovers}"
        ));
    }
    let hidden = bench.world.bfs.hidden_names();
    if !hidden.is_empty() {
        bench.violation(format!("no file is open, and hidden names are left: {hidden:?}"));
    }
    Ok(())
}
