//! One file per subcommand.

pub mod bench;
pub mod bench_geo;
pub mod bench_multicast;
pub mod client;
pub mod collect;
pub mod completion;
pub mod explain;
pub mod fsck;
pub mod group;
pub mod init;
pub mod mount;
pub mod mount_options;
pub mod node;
pub mod node_admin;
pub mod place;
pub mod rebuild;
pub mod service;
pub mod status;
pub mod umount;
pub mod up;
pub mod version;
pub mod wan;

use crate::args::{Cli, Command};
use crate::exit::{Exit, Result};
use crate::telemetry;

/// Services tell what they do; tools end with a message of their own.
const LOG_SERVICE: &str = "info";
const LOG_TOOL: &str = "error";

/// Runs a command. An error has a code of its own; a command that worked may still have found problems.
pub fn run(cli: Cli) -> Result<Exit> {
    let service = match &cli.command {
        Command::Node(args) => args.is_service(),
        command => matches!(command, Command::Mount(_)),
    };
    telemetry::init(cli.globals.log_format, if service { LOG_SERVICE } else { LOG_TOOL });
    let globals = &cli.globals;
    match cli.command {
        Command::Up(args) => up::run(globals, args),
        Command::Init(args) => init::run(&args),
        Command::Node(args) => node::run(globals, &args),
        Command::Mount(args) => mount::run(globals, &args),
        Command::Umount(args) => umount::run(&args),
        Command::Status(args) => status::run(globals, &args),
        Command::Place(args) => place::run(globals, &args),
        Command::Group(args) => group::run(globals, &args),
        Command::Explain(args) => explain::run(globals, &args),
        Command::Fsck(args) => fsck::run(globals, &args),
        Command::Wan(args) => wan::run(globals, &args),
        Command::Bench(args) => bench::run(&args),
        Command::Completion(args) => completion::run(&args),
        Command::Version(args) => version::run(&args),
    }
}
