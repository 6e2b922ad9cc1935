//! `globalfs group`: who belongs to a group, and changes of that while it works.

pub mod desk;
mod list;
mod recover;

use clap::{Args, Subcommand};
use multicast::MemberRole;
use serde_json::json;

use super::client::Wishes;
use super::{place, service};
use crate::args::Globals;
use crate::config::{Cluster, Group, Node, find};
use crate::exit::{Exit, Failure, Result};
use crate::output::{say, tell};
use crate::units::TimeSpan;
use desk::{Desk, Wanted};

/// How long nodes may take to answer one question.
const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Options.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  globalfs group list
  globalfs group add-learner eu us-1         us reads what is placed on eu from a replica of its own
  globalfs group replace eu eu-2 eu-4        eu-4 votes in place of eu-2
  globalfs group recover eu --from ap-1      a quorum of eu's disks is lost for good

One member changes at a time, while the group works. Each command may be interrupted, and given again. Only who holds
client.admin.key may change anything.")]
pub struct GroupArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show the members of every group, what they are and how far they are
    #[command(after_help = "Examples:
  globalfs group list
  globalfs group list eu
  globalfs group list --json | jq '.groups[] | {name, members}'")]
    List {
        /// Only this group
        group: Option<String>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Let a node follow a group: mounts in its region read there
    #[command(after_help = "Examples:
  globalfs group add-learner eu us-1
  globalfs group add-learner eu us-1 --no-wait --json")]
    AddLearner(Change),
    /// End a node's following; its copy is deleted
    #[command(after_help = "Examples:\n  globalfs group remove-learner eu us-1")]
    RemoveLearner(Change),
    /// Make a learner a voter, once it has caught up
    #[command(after_help = "Examples:\n  globalfs group promote eu us-1")]
    Promote(Change),
    /// Let a node vote in a group, once it has caught up
    #[command(after_help = "Examples:\n  globalfs group add-voter eu eu-4")]
    AddVoter(Change),
    /// End a node's vote in a group; its copy is deleted. It may be down
    #[command(after_help = "Examples:\n  globalfs group remove-voter eu eu-2")]
    RemoveVoter(Change),
    /// Let one node vote in place of another, which may be down
    #[command(after_help = "Examples:
  globalfs group replace eu eu-2 eu-4        eu-2 goes when eu-4 votes
  globalfs group replace eu eu-2 eu-4 --no-wait    only begins it: remove-voter eu eu-2 is left to do")]
    Replace {
        /// The group
        group: String,
        /// The node that goes
        old: String,
        /// The node that comes
        new: String,
        #[command(flatten)]
        how: How,
    },
    /// Make one replica the only voter of a group that has lost a quorum of its disks for good
    #[command(after_help = recover::HELP)]
    Recover(recover::RecoverArgs),
}

#[derive(Debug, Args)]
struct Change {
    /// The group
    group: String,
    /// The node
    node: String,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct How {
    /// Return once the change is made, without waiting until the new member has caught up
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for a new member to catch up; it goes on by itself afterwards
    #[arg(long, value_name = "TIME", default_value = "1h")]
    timeout: TimeSpan,
    /// What was done, as one JSON object
    #[arg(long)]
    json: bool,
}

/// Does one of them.
pub fn run(globals: &Globals, args: &GroupArgs) -> Result<Exit> {
    let cluster = find::cluster(globals.config.as_deref(), None)?;
    // Who looks after a cluster sees it as it is: an emulated cut does not hide nodes.
    let wishes = Wishes { emulated: false, ..Wishes::tool(&cluster, None, ANSWER_TIMEOUT)? };
    let runtime = service::runtime()?;
    let work = async |client: &fs_client::Client| {
        let desk = |how: Option<&How>| Desk {
            cluster: &cluster,
            client,
            timeout: how.map_or(ANSWER_TIMEOUT, |how| how.timeout.0),
            is_chatty: how.is_some_and(|how| !how.json),
        };
        match &args.action {
            Action::List { group, json } => list::run(&desk(None), group.as_deref(), *json).await,
            Action::AddLearner(change) => add(&desk(Some(&change.how)), change, Wanted::Learner).await,
            Action::AddVoter(change) => add(&desk(Some(&change.how)), change, Wanted::Voter).await,
            Action::Promote(change) => promote(&desk(Some(&change.how)), change).await,
            Action::RemoveLearner(change) => remove(&desk(Some(&change.how)), change, Wanted::Learner).await,
            Action::RemoveVoter(change) => remove(&desk(Some(&change.how)), change, Wanted::Voter).await,
            Action::Replace { group, old, new, how } => {
                replace(&desk(Some(how)), &cluster, (group, old, new), how).await
            }
            Action::Recover(args) => recover::run(&desk(None), args).await,
        }
    };
    runtime.block_on(place::with_client(&cluster, &wishes, work))
}

async fn add(desk: &Desk<'_>, change: &Change, wanted: Wanted) -> Result<Exit> {
    let (group, node) = (desk.cluster.group(&change.group)?, desk.cluster.node(&change.node)?);
    desk.add(group, node, wanted).await?;
    if !change.how.no_wait {
        desk.await_member(group, node, wanted).await?;
    }
    let kind = if wanted == Wanted::Voter { "voter" } else { "learner" };
    let state = if change.how.no_wait { "is to be" } else { "is" };
    conclude(desk, group, &change.how, &format!("{} {state} a {kind} of group {}", node.name, group.name)).await
}

async fn promote(desk: &Desk<'_>, change: &Change) -> Result<Exit> {
    let (group, node) = (desk.cluster.group(&change.group)?, desk.cluster.node(&change.node)?);
    let members = desk.members(group).await?;
    match members.member(node.id).map(|member| member.role) {
        Some(MemberRole::Learner | MemberRole::Joining) => add(desk, change, Wanted::Voter).await,
        Some(MemberRole::Voter) => {
            Err(Failure::new(Exit::Exists, format!("{} is a voter of group {} already", node.name, group.name)))
        }
        None => {
            let problem = format!(
                "{} is no learner of group {}; `globalfs group add-voter` makes a voter of a node that is no member",
                node.name, group.name
            );
            Err(Failure::new(Exit::Exists, problem))
        }
    }
}

async fn remove(desk: &Desk<'_>, change: &Change, kind: Wanted) -> Result<Exit> {
    let (group, node) = (desk.cluster.group(&change.group)?, desk.cluster.node(&change.node)?);
    let members = desk.members(group).await?;
    match (members.member(node.id).map(|member| member.role), kind) {
        (Some(MemberRole::Voter), Wanted::Learner) => {
            let problem = format!("{} is a voter of group {}: see remove-voter", node.name, group.name);
            return Err(Failure::new(Exit::Exists, problem));
        }
        (Some(MemberRole::Learner), Wanted::Voter) => {
            let problem = format!("{} is a learner of group {}: see remove-learner", node.name, group.name);
            return Err(Failure::new(Exit::Exists, problem));
        }
        (Some(_), _) => {}
        (None, _) => {
            // What an earlier command has left.
            if desk.replica(group.id, node.id).await.is_none() {
                let problem = format!("{} is no member of group {}", node.name, group.name);
                return Err(Failure::new(Exit::Exists, problem));
            }
        }
    }
    let is_deleted = desk.remove(group, node.id).await?;
    note_left(desk, group, node, is_deleted);
    conclude(desk, group, &change.how, &format!("{} is no member of group {} any more", node.name, group.name)).await
}

fn note_left(desk: &Desk<'_>, group: &Group, node: &Node, is_deleted: bool) {
    if !is_deleted && desk.is_chatty {
        tell!(
            "{} does not answer: its copy of group {} is still there, and does nothing; give the command again when it is \
             back, to have it deleted",
            node.name,
            group.name
        );
    }
}

async fn replace(desk: &Desk<'_>, cluster: &Cluster, (group, old, new): (&str, &str, &str), how: &How) -> Result<Exit> {
    let (group, old, new) = (cluster.group(group)?, cluster.node(old)?, cluster.node(new)?);
    if old.id == new.id {
        return Err(Failure::new(Exit::Usage, "a node cannot take its own place"));
    }
    let members = desk.members(group).await?;
    // Given again after it was interrupted, it may be half done.
    let known = members.member(new.id);
    if members.member(old.id).is_none() && known.is_none() {
        return Err(Failure::new(Exit::Exists, format!("{} is no member of group {}", old.name, group.name)));
    }
    if how.no_wait && members.is_full() && known.is_none_or(|known| !known.is_voter()) {
        let problem = format!(
            "group {} has as many voters as there can be: {} has to go before {} can vote, so this cannot be begun and left; nothing \
             was changed",
            group.name, old.name, new.name
        );
        return Err(Failure::new(Exit::Exists, problem));
    }
    if how.no_wait {
        if known.is_none_or(|known| !known.is_voter()) {
            desk.add(group, new, Wanted::Voter).await?;
        }
        let said = format!(
            "{} is to be a voter of group {}; when it is: globalfs group remove-voter {} {}",
            new.name, group.name, group.name, old.name
        );
        return conclude(desk, group, how, &said).await;
    }
    let is_deleted = desk.replace(group, old.id, new).await?;
    note_left(desk, group, old, is_deleted);
    conclude(desk, group, how, &format!("{} votes in group {} in place of {}", new.name, group.name, old.name)).await
}

/// Says what was done, and who the members are now.
async fn conclude(desk: &Desk<'_>, group: &Group, how: &How, said: &str) -> Result<Exit> {
    if !how.json {
        say!("{said}");
        return Ok(Exit::Done);
    }
    let members = desk.members(group).await?;
    say!(
        "{}",
        json!({ "schema": 1, "done": said, "group": group.name, "version": members.version,
        "members": list::members_json(desk, &members) })
    );
    Ok(Exit::Done)
}
