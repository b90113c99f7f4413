//! Four ranks.

use std::process::Command;

use crate::harness::{Cluster, Shape, not_run};
use crate::programs::Programs;

#[test]
fn real_four_mpi_ranks_share_a_file_and_have_one_each() {
    if Command::new("mpicc").arg("-show").output().is_err() {
        return not_run("MPICH (apt-get install mpich libmpich-dev)");
    }
    let shape = Shape { devices: 4, device_mib: 512, ..Shape::default() };
    let cluster = Cluster::started(&shape);
    let programs = Programs::new(&cluster.address, &cluster.path("bfs"), 60);
    let binary = programs.compiled("mpi", "mpicc");
    let (place, _) = programs.place("mpi");
    let mut command = Command::new("mpirun");
    command.args(["-n", "4"]).arg(binary).arg(place);
    programs.prepare(&mut command);
    let output = command.output().expect("mpirun starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "4 ranks\n");
}
