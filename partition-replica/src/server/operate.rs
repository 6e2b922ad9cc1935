//! What operators ask: who belongs to the groups, and changes of that. Only who shows an operator's certificate may change
//! anything.

use std::sync::Arc;

use metadata::operate::{Directory, GroupMembers, NodeAddress, Operated, Operation, Refusal};
use metadata::protocol::Reply;
use multicast::Membership;

use super::client::Ticket;
use crate::config::GroupInfo;
use crate::group::mailbox::Input;
use crate::node::Shared;

/// Who belongs to the groups, as far as the replicas here know.
pub fn directory(shared: &Shared) -> Directory {
    let known = shared.router.members().all();
    let group = |info: &GroupInfo| {
        let front = shared.replicas.get(info.id).map(|replica| replica.view.front());
        let founded = || front.as_ref().map(|_| Membership::genesis(&info.voters));
        let members = known.get(&info.id).cloned().or_else(founded)?;
        let applied = front.filter(|front| !front.is_quarantined).map(|front| front.applied);
        Some(GroupMembers { group: info.id, members, applied })
    };
    let nodes = shared.nodes.all().into_iter().map(|node| NodeAddress {
        number: node.number,
        name: node.name,
        region: node.region,
        address: node.address,
    });
    Directory { groups: shared.config.groups.iter().filter_map(group).collect(), nodes: nodes.collect() }
}

/// Does what an operator wants, or says why not.
pub fn handle(shared: &Arc<Shared>, operation: Operation, ticket: Ticket) {
    let refuse = |ticket: Ticket, why| ticket.reply(Reply::Operated(Operated::Refused(why)));
    if !ticket.client().is_operator() {
        tracing::warn!(client = ticket.client().name(), ?operation, "refused what only operators may do");
        return refuse(ticket, Refusal::NotPermitted);
    }
    let group = operation.group();
    let replica = shared.replicas.get(group);
    match (operation, replica) {
        (Operation::Change { change, .. }, Some(replica)) => {
            tracing::info!(%group, ?change, "an operator changes the group's members");
            replica.mailbox.push(Input::Change { change, ticket });
        }
        (Operation::Force { replica: named, incarnation, keep, .. }, Some(replica)) => {
            replica.mailbox.push(Input::Force { named: (named, incarnation), keep, ticket });
        }
        (Operation::Rebuild { replica: named, incarnation, .. }, Some(replica)) => {
            tracing::warn!(%group, "an operator has this replica rebuilt");
            replica.mailbox.push(Input::Rebuild { named: (named, incarnation), ticket });
        }
        (Operation::Change { .. } | Operation::Force { .. } | Operation::Rebuild { .. }, None) => {
            ticket.reply(Reply::UnknownGroup { group })
        }
        (operation @ (Operation::Host { .. } | Operation::Unhost { .. }), _) => {
            let Some(turn) = shared.clients.report() else {
                return refuse(ticket, Refusal::Failed("the node is busy".into()));
            };
            let shared = shared.clone();
            // They wait for the disk.
            tokio::task::spawn_blocking(move || {
                let done = match operation {
                    Operation::Unhost { members, .. } => shared.unhost(group, members).map(|()| Operated::Unhosted),
                    _ => shared.host(group).map(Operated::Hosted),
                };
                ticket.reply(Reply::Operated(done.unwrap_or_else(Operated::Refused)));
                drop(turn);
            });
        }
    }
}
