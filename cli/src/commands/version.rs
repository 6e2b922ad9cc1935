//! `globalfs version`.

use clap::Args;
use serde_json::json;

use crate::exit::{Exit, Result};
use crate::output::say;

/// Options.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  globalfs version\n  globalfs version --json")]
pub struct VersionArgs {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Prints versions.
pub fn run(args: &VersionArgs) -> Result<Exit> {
    let version = env!("CARGO_PKG_VERSION");
    let client_protocol = metadata::protocol::CLIENT_PROTOCOL_VERSION;
    if args.json {
        let wire = net::WIRE_VERSION;
        say!("{}", json!({ "version": version, "wire": wire, "client_protocol": client_protocol }));
    } else {
        say!("globalfs {version} (wire version {}, client protocol {client_protocol})", net::WIRE_VERSION);
    }
    Ok(Exit::Done)
}
