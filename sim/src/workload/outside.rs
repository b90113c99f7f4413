//! Files that are changed from outside only: what is read after an open is no older than the open.

use super::bench::Bench;
use super::driver::Worker;

/// Number of such files.
const FILES: u64 = 2;

fn path(number: usize) -> String {
    format!("/outside{number}")
}

/// Contents of version `version` of a file.
pub fn outside_bytes(number: usize, version: u64, len: usize) -> Vec<u8> {
    let seed = (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ version;
    (0..len as u64)
        .map(|at| {
            let mixed = (seed ^ (at / 8)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed.rotate_left(31).to_le_bytes()[usize::try_from(at % 8).unwrap_or(0)] | 1
        })
        .collect()
}

/// Writes one of the files anew, behind the server's back.
pub fn change_from_outside(bench: &Bench) {
    let number = usize::try_from(bench.world.draw(FILES)).unwrap_or(0);
    let len = usize::try_from(bench.world.draw(200_000)).unwrap_or(0);
    let version = bench.outside.borrow().get(&number).map_or(0, Vec::len) as u64;
    let bytes = outside_bytes(number, version, len);
    let done = bench.world.bfs.outside_write(path(number).as_bytes(), &bytes);
    let now = bench.world.bfs.files().remove(path(number).as_bytes()).unwrap_or_default();
    bench.world.tally.borrow_mut().outside_changes += 1;
    let moment = bench.tick();
    bench.note(|| {
        format!("{} is changed from outside: {} bytes, {done:?}", path(number), now.len())
    });
    bench.outside.borrow_mut().entry(number).or_default().push((moment, now));
}

impl Worker {
    /// Reads one of the files, maybe prestages it.
    pub(super) async fn read_outside(&self) {
        let (bench, actor) = (&self.bench, self.process.actor);
        let number = usize::try_from(self.draw(FILES)).unwrap_or(0);
        if !bench.outside.borrow().contains_key(&number) {
            return;
        }
        let path = path(number);
        let begun = bench.tick();
        bench.note(|| format!("c{} open {path}", actor.0));
        let file = match self.process.client.open(path.as_bytes(), libc::O_RDONLY, 0).await {
            Ok(file) => file,
            Err(error) => return self.failed("open", &error, false),
        };
        if self.draw(3) == 0 {
            self.operate_on(&file, bb_proto::meta::Residency::Prestage, number as u64).await;
        }
        let mut out = vec![0xEE; 220_000];
        let offset = if self.draw(2) == 0 { 0 } else { self.draw(100_000) };
        bench.note(|| format!("c{} read {path} at {offset}", actor.0));
        match file.pread(&mut out, offset).await {
            Ok(got) => {
                bench.count("read outside", "ok");
                if let Some(at) = self.unexplained(number, begun, offset, &out[..got]) {
                    bench.violation(format!(
                        "client {} read {path}: {got} bytes at {offset} are none of what was \
                         there since the open, first at {at}",
                        actor.0
                    ));
                }
            }
            Err(error) => self.failed("read outside", &error, false),
        }
        if let Err(error) = file.close().await {
            self.failed("close", &error, false);
        }
    }

    /// First byte that no version since `begun` explains; the length counts as a byte.
    fn unexplained(
        &self,
        number: usize,
        begun: crate::model::Moment,
        offset: u64,
        bytes: &[u8],
    ) -> Option<u64> {
        let outside = self.bench.outside.borrow();
        let all = &outside[&number];
        let first = all.iter().rposition(|(at, _)| *at <= begun).unwrap_or(0);
        let versions = &all[first..];
        let start = usize::try_from(offset).unwrap_or(0);
        for (at, byte) in bytes.iter().enumerate() {
            // A shorter version may leave zeros where a longer one was when the size was asked.
            let fits = versions.iter().any(|(_, v)| match v.get(start + at) {
                Some(right) => right == byte,
                None => versions.len() > 1 && *byte == 0,
            });
            if !fits {
                return Some(offset + at as u64);
            }
        }
        let end = start + bytes.len();
        let ends = versions.iter().any(|(_, v)| v.len() == end || v.len() <= start && end == start);
        (!ends && versions.len() == 1).then_some(end as u64)
    }
}
