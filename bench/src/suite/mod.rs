//! The program `bench`: one run that measures Burstbay, what users have, and what the machine allows,
//! in turns. The data path of a run: `options`, `systems` (started), `rounds` (measured into
//! `sample`s, judged by `honesty`), `shares` and `goals` (computed), `table`, `report` and `plot`.

pub mod clock;
mod cluster;
mod floor_run;
mod gluster;
mod goals;
mod histogram;
mod honesty;
mod load;
mod options;
mod place;
mod plot;
mod process;
mod report;
mod rounds;
mod rows;
mod run;
mod sample;
mod shares;
mod statistic;
mod system;
mod systems;
mod table;
mod tell;

pub use options::Options;
pub use run::run;
