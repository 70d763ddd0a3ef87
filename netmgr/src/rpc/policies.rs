//! The capability on a policy, and what calls say of one.

use std::time::Duration;

use capnp::capability::{Rc, get_resolved_cap};
use schema::{
    network_capnp::{MAX_RULES, policy, policy_rules},
    policy::{Rule, Rules},
};

use super::{Context, text, while_trying};
use crate::error::Error;

/// How long a policy may take to be one: it may be the answer to a call before.
const PROMISE: Duration = Duration::from_secs(10);

impl Context {
    /// A capability on a policy.
    pub fn policy(&self, rules: Rules) -> policy::Client {
        let mut policies = self.policies.borrow_mut();
        policies.gc();
        policies.new_client(Policy { context: self.clone(), rules })
    }

    /// What a policy says that a caller sent, if it sent one.
    pub async fn given(
        &self,
        given: bool,
        policy: Result<policy::Client, capnp::Error>,
    ) -> Result<Option<Rules>, Error> {
        if !given {
            return Ok(None);
        }
        let resolved = match policy {
            Ok(policy) => tokio::time::timeout(PROMISE, get_resolved_cap(policy)).await.ok(),
            Err(_) => None,
        };
        let found = resolved.and_then(|policy| self.policies.borrow().get_local_server_of_resolved(&policy));
        let why = "it is no policy that this connection has been given";
        found.map(|policy| Some(policy.rules.clone())).ok_or_else(|| Error::argument("policy", "", why))
    }
}

/// The rules that a caller sent.
pub fn rules(given: policy_rules::Reader<'_>) -> Result<Rules, Error> {
    let given = given.get_allow().map_err(|_| Error::argument("policy", "", "it is no list of rules"))?;
    // One more is refused as such.
    let texts = given.iter().take(usize::from(MAX_RULES) + 1).map(|rule| text("rule", rule));
    let texts = texts.collect::<Result<Vec<_>, _>>()?;
    Rules::new(texts).map_err(|(rule, why)| Error::argument("rule", &rule, &why))
}

pub fn write_rules(to: policy_rules::Builder<'_>, rules: &Rules) {
    let mut list = to.init_allow(u32::try_from(rules.iter().count()).unwrap_or(0));
    for (at, rule) in (0..list.len()).zip(rules.iter().map(Rule::to_string)) {
        list.set(at, rule);
    }
}

/// `Policy`.
pub struct Policy {
    context: Context,
    rules: Rules,
}

impl policy::Server for Policy {
    async fn rules(
        self: Rc<Self>,
        _: policy::RulesParams,
        mut results: policy::RulesResults,
    ) -> Result<(), capnp::Error> {
        write_rules(results.get().init_rules(), &self.rules);
        Ok(())
    }

    async fn narrow(
        self: Rc<Self>,
        params: policy::NarrowParams,
        mut results: policy::NarrowResults,
    ) -> Result<(), capnp::Error> {
        let failed = while_trying("narrow a policy".into());
        let other = rules(params.get()?.get_rules()?).map_err(&failed)?;
        let both = self.rules.narrowed(&other).map_err(|why| failed(Error::argument("policy", "", &why)))?;
        results.get().set_policy(self.context.policy(both));
        Ok(())
    }
}
