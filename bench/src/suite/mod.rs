//! The program `bench`: one run that measures Burstbay, what users have, and what the machine allows,
//! in turns. The data path of a run: `options`, `systems` (started), `rounds` (measured into
//! `sample`s, judged by `honesty`), `shares` and `goals` (computed), `table`, `report` and `plot`.

mod callgrind;
pub mod clock;
mod cluster;
mod flame;
mod floor_run;
mod gluster;
mod goals;
mod histogram;
mod honesty;
mod instructions;
mod load;
mod options;
mod place;
mod plot;
mod process;
mod profile;
mod regression;
mod report;
mod rounds;
mod rows;
mod run;
mod sample;
mod shares;
mod statistic;
mod stores;
mod system;
mod systems;
mod table;
mod tell;

pub use options::Options;
pub use run::run;
