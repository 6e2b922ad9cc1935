//! The command line: one subcommand, one file below `commands`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands;
use crate::exit::EXIT_CODES;

/// Where `--help` shows the options of every command.
const COMMON: &str = "Options of every command";

/// One POSIX file system over many regions.
#[derive(Debug, Parser)]
#[command(
    name = "globalfs",
    version,
    about,
    long_about = "One POSIX file system over many regions: every region mounts the same tree, updates are strongly \
                  consistent, and a subtree is fast where it is placed.",
    after_help = format!("Start here:\n  globalfs up                       an embedded cluster of three regions, mounted\n  \
                          globalfs up --wan geo3-fast       the same with distances between the regions\n\n{EXIT_CODES}"),
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Globals {
    /// The cluster's configuration [default: that of the mount one is in, else ./globalfs-data/cluster.toml]
    #[arg(long, global = true, value_name = "FILE", env = "GLOBALFS_CONFIG", hide_env_values = true, help_heading = COMMON)]
    pub config: Option<PathBuf>,
    /// No colours, also on a terminal (as does NO_COLOR)
    #[arg(long, global = true, help_heading = COMMON)]
    pub no_color: bool,
    /// How log lines are written; RUST_LOG chooses which
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "GLOBALFS_LOG_FORMAT",
        hide_env_values = true,
        help_heading = COMMON
    )]
    pub log_format: LogFormat,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start an embedded cluster on this machine and mount it
    Up(commands::up::UpArgs),
    /// Write a new cluster's configuration and certificates
    Init(commands::init::InitArgs),
    /// Run a node, or add, drain and remove nodes
    Node(commands::node::NodeArgs),
    /// Mount the volume
    Mount(commands::mount::MountArgs),
    /// Unmount
    Umount(commands::umount::UmountArgs),
    /// Show nodes, groups and unfinished multi-group commands
    Status(commands::status::StatusArgs),
    /// Show or change where subtrees live
    Place(commands::place::PlaceArgs),
    /// Show or change who belongs to the replica groups
    Group(commands::group::GroupArgs),
    /// Tell what reads and updates of a path cost, and what still works when a region is lost
    Explain(commands::explain::ExplainArgs),
    /// Check everything: the tree, link counts, blobs, digests
    Fsck(commands::fsck::FsckArgs),
    /// Show or change the emulated network between regions
    Wan(commands::wan::WanArgs),
    /// Measure file systems
    Bench(commands::bench::BenchArgs),
    /// Write a completion script for a shell
    #[command(alias = "completions")]
    Completion(commands::completion::CompletionArgs),
    /// Show the version
    Version(commands::version::VersionArgs),
}
