//! Who works on what: the built-in worker has one desk, each of the owner's own skills another one with workers of its own, so that
//! a program that hangs or falls takes nobody else's work with it. Nothing here knows what the orders mean.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::{LaborSettings, Leases};
use crate::labor::skills::own::Own;
use crate::node::Mailbox;
use crate::node::order::Order;

/// Engagements of own skills whose desk is remembered, the newest: far more than there can be leases.
const REMEMBERED: usize = 65_536;

struct Desk {
    skill: &'static str,
    orders: mpsc::UnboundedSender<Order>,
}

/// Gives each order to its desk until the channel closes, then ends all workers. `status` holds the built-in worker's profile.
pub(in crate::node) async fn run(
    settings: LaborSettings,
    own: &'static [Own],
    mailbox: Mailbox,
    mut orders: mpsc::UnboundedReceiver<Order>,
    status: Arc<std::sync::Mutex<Option<String>>>,
    cores: watch::Receiver<u32>,
) {
    use crate::labor::skills::Skill;

    let mut at_work = tokio::task::JoinSet::new();
    let mut desks = Vec::new();
    for skill in own {
        let (sender, receiver) = mpsc::unbounded_channel();
        let settings = LaborSettings {
            program: skill.program.clone(),
            args: skill.args.clone(),
            scratch: scratch(&settings.scratch, skill.id()),
            ..settings.clone()
        };
        let (mailbox, cores) = (mailbox.clone(), cores.clone());
        at_work.spawn(Leases::run(
            settings,
            mailbox,
            receiver,
            Arc::default(),
            cores,
        ));
        desks.push(Desk {
            skill: skill.id(),
            orders: sender,
        });
    }
    let (built_in, receiver) = mpsc::unbounded_channel();
    at_work.spawn(Leases::run(settings, mailbox, receiver, status, cores));
    let mut begun: VecDeque<(String, usize)> = VecDeque::new();
    while let Some(order) = orders.recv().await {
        let desk = match &order {
            Order::Start { skill, key, .. } => {
                let desk = desks.iter().position(|desk| desk.skill == skill);
                if let Some(desk) = desk.filter(|_| !begun.iter().any(|(k, _)| k == key)) {
                    begun.push_back((key.clone(), desk));
                    if begun.len() > REMEMBERED {
                        begun.pop_front();
                    }
                }
                desk
            }
            Order::SoftStop { key, .. } => {
                // The newest are at the end.
                let found = begun.iter().rev().find(|(known, _)| known == key);
                found.map(|(_, desk)| *desk)
            }
            Order::Abandon => {
                for desk in &desks {
                    let _ = desk.orders.send(Order::Abandon);
                }
                None
            }
            _ => None,
        };
        let to = desk
            .and_then(|desk| desks.get(desk))
            .map_or(&built_in, |desk| &desk.orders);
        let _ = to.send(order);
    }
    drop((built_in, desks));
    while at_work.join_next().await.is_some() {}
}

fn scratch(folder: &std::path::Path, skill: &str) -> PathBuf {
    folder.join(format!("skill-{skill}"))
}

/// Whether a program's code can stand in a message: an owner's program may say anything.
pub(super) fn is_code(code: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (1..=64).contains(&code.len()) && code.bytes().all(plain)
}
