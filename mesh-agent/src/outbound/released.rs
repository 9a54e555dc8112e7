//! A connection that was held until its pod was classified, and the pod is not enrolled: dialled plainly in the pod's own
//! namespace, without identity or policy, and recorded. Only what was made before the classification comes here.

use bytes::Bytes;

use super::near::{Failure, Near};
use super::{Attempt, Carrier};
use super::{FAR, NEAR, not_connected};
use crate::accept;
use crate::authorize::Cut;
use crate::intercept::Held;
use crate::observe::{self, Facts, Outcome, Record, Reporter};
use crate::transport::{self, Protocol, Watch};

/// Dials for the client, and carries the connection.
pub(crate) async fn release(carrier: &Carrier, held: Held) {
    carrier.ctx.metrics.released.inc();
    let mut facts = Facts::new(Reporter::Source, held.client());
    facts.dialled = Some(accept::canonical(held.dst));
    facts.endpoint = facts.dialled;
    facts.protocol = Some(Protocol::Plain);
    let mut record = Record::new(&carrier.ctx.metrics, facts);
    let (mut near, mut before) = (held, None);
    let outcome = loop {
        let (same, failure) = match once(carrier, near, &mut record).await {
            Attempt::Over(outcome) => break outcome.explained_by(before),
            Attempt::Elsewhere(near, failure) | Attempt::Hopeless(near, failure) => (near, failure),
        };
        match same.fail(failure.answer).await {
            Some(Near::Held(asking)) => (near, before) = (asking, Some(failure.outcome)),
            Some(Near::Accepted { .. }) | None => break failure.outcome,
        }
    };
    record.end(outcome);
}

async fn once(carrier: &Carrier, held: Held, record: &mut Record) -> Attempt {
    let dial = tokio::time::timeout(carrier.ctx.config.dial_timeout, held.dial());
    let far = tokio::select! {
        biased;
        far = dial => far,
        () = held.gone() => return Attempt::Over(Outcome::gave_up()),
    };
    let far = match far {
        Ok(Ok(far)) => far,
        Ok(Err(error)) => return Attempt::Hopeless(Near::Held(held), Failure::dial(&error)),
        Err(_) => return Attempt::Hopeless(Near::Held(held), Failure::passing(Outcome::dial_timeout())),
    };
    let near = match held.connected().await {
        Ok(near) => near,
        Err(error) => {
            accept::reset(far);
            return not_connected(held, &error);
        }
    };
    drop(held);
    // No policy of ours can end it.
    let (_handle, cut) = Cut::pair();
    let watch = Watch { cut, meter: record.meter(observe::Near::Client) };
    let relayed = transport::plain::relay(near, far, Bytes::new(), watch).await;
    record.carried(relayed.to_near, relayed.from_near);
    Attempt::Over(Outcome::of_end(&relayed.end, NEAR, FAR))
}
