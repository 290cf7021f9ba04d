//! Who works on what: the built-in worker has one desk, each of the owner's own skills another one with workers of its own, so that
//! a program that hangs or falls takes nobody else's work with it. Nothing here knows what the orders mean.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::{LaborSettings, Leases};
use crate::labor::skills::own::{self, Known, Own};
use crate::node::Mailbox;
use crate::node::order::Order;

/// Engagements of own skills whose desk is remembered, the newest: far more than there can be leases.
const REMEMBERED: usize = 65_536;

struct Desk {
    skill: String,
    orders: mpsc::UnboundedSender<Order>,
}

type Orders = mpsc::UnboundedReceiver<Order>;

/// Gives each order to its desk until the channel closes, then ends all workers. `status` holds the built-in worker's profile.
pub(in crate::node) async fn run(
    settings: LaborSettings,
    own: Vec<String>,
    mailbox: Mailbox,
    mut orders: Orders,
    status: Arc<std::sync::Mutex<Option<String>>>,
    cores: watch::Receiver<u32>,
) {
    let mut at_work = tokio::task::JoinSet::new();
    let mut desks = Vec::new();
    let (built_in, receiver) = mpsc::unbounded_channel();
    for skill in own {
        let (sender, orders) = mpsc::unbounded_channel();
        let (settings, mailbox, cores) = (settings.clone(), mailbox.clone(), cores.clone());
        at_work.spawn(open(
            skill.clone(),
            settings,
            mailbox,
            orders,
            built_in.clone(),
            cores,
        ));
        desks.push(Desk {
            skill,
            orders: sender,
        });
    }
    at_work.spawn(Leases::run(settings, mailbox, receiver, status, cores));
    let mut begun: VecDeque<(String, usize)> = VecDeque::new();
    while let Some(order) = orders.recv().await {
        let desk = match &order {
            Order::Start { skill, key, .. } => {
                let desk = desk_of(&desks, skill);
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
            // What a result must look like is known when its skill is: its desk waits for that, and passes it on.
            Order::Check(order) => desk_of(&desks, &order.skill),
            Order::Evidence { skill, .. } => desk_of(&desks, skill),
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

fn desk_of(desks: &[Desk], skill: &str) -> Option<usize> {
    desks.iter().position(|desk| desk.skill == skill)
}

/// One desk: nothing is done before its skill is described. Checks are the built-in worker's, and so is whatever is asked of a
/// skill that was not described: it says that it knows no such skill.
async fn open(
    skill: String,
    settings: LaborSettings,
    mailbox: Mailbox,
    mut orders: Orders,
    built_in: mpsc::UnboundedSender<Order>,
    cores: watch::Receiver<u32>,
) {
    let mut early = VecDeque::new();
    loop {
        tokio::select! {
            () = own::settled(&skill) => break,
            order = orders.recv() => match order {
                Some(order) => early.push_back(order),
                None => return,
            }
        }
    }
    let described: Option<&'static Own> = match own::known().remove(&skill) {
        Some(Known::Described(own)) => Some(own),
        _ => None,
    };
    let (desk, receiver) = mpsc::unbounded_channel();
    let pass_on = async move {
        let to = |order: Order| {
            let own =
                described.is_some() && !matches!(order, Order::Check(_) | Order::Evidence { .. });
            let _ = if own { &desk } else { &built_in }.send(order);
        };
        early.into_iter().for_each(to);
        while let Some(order) = orders.recv().await {
            to(order);
        }
    };
    let Some(own) = described else {
        return pass_on.await;
    };
    let settings = LaborSettings {
        program: own.program.clone(),
        args: own.args.clone(),
        scratch: scratch(&settings.scratch, &skill),
        ..settings
    };
    let work = Leases::run(settings, mailbox, receiver, Arc::default(), cores);
    tokio::join!(work, pass_on);
}

fn scratch(folder: &std::path::Path, skill: &str) -> PathBuf {
    folder.join(format!("skill-{skill}"))
}

/// Whether a program's code can stand in a message: an owner's program may say anything.
pub(super) fn is_code(code: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (1..=64).contains(&code.len()) && code.bytes().all(plain)
}
