//! The capabilities of `schema/kernel_store.capnp`. Sees clients; touches no file but the descriptors that it passes on.

use std::rc::Rc;
use std::sync::Arc;

use capnp::capability::Client;
use ipc::{Lane, Peer, text};
use schema::kernel_store_capnp::{Machine, kernel, kernel_info, kernel_store};

use crate::index::Entry;
use crate::service::Service;
use crate::store;

type Done = Result<(), capnp::Error>;

/// What a client gets on connecting: the whole store.
pub fn bootstrap(service: &Service, lane: &Lane, peer: Peer) -> Client {
    let store: kernel_store::Client =
        capnp_rpc::new_client(KernelStore(Link { service: service.of(peer), lane: lane.clone(), peer }));
    Client::new(store.client.hook)
}

/// A client, and what it talks to.
#[derive(Clone)]
struct Link {
    service: Service,
    lane: Lane,
    peer: Peer,
}

impl Link {
    fn kernel(&self, kernel: store::Kernel) -> kernel::Client {
        capnp_rpc::new_client(Kernel { kernel: Arc::new(kernel), link: self.clone() })
    }
}

struct KernelStore(Link);

impl kernel_store::Server for KernelStore {
    async fn import_kernel(
        self: Rc<Self>,
        params: kernel_store::ImportKernelParams,
        mut results: kernel_store::ImportKernelResults,
    ) -> Done {
        let params = params.get()?;
        let name = text("import a kernel", "alias", params.get_alias()?)?;
        let image = self.0.lane.redeem(params.get_image()?.get_bytes()?, self.0.peer)?;
        let kernel = self.0.service.import(image, name).await?;
        results.get().set_kernel(self.0.kernel(kernel));
        Ok(())
    }

    async fn get(self: Rc<Self>, params: kernel_store::GetParams, mut results: kernel_store::GetResults) -> Done {
        let reference = text("get a kernel", "ref", params.get()?.get_ref()?)?;
        let kernel = self.0.service.disk().ask(move |store| store.get(&reference)).await?;
        results.get().set_kernel(self.0.kernel(kernel));
        Ok(())
    }

    async fn list(self: Rc<Self>, _: kernel_store::ListParams, mut results: kernel_store::ListResults) -> Done {
        let kernels = self.0.service.disk().ask(|store| Ok::<_, ipc::Fault>(store.list())).await?;
        let mut list = results.get().init_kernels(u32::try_from(kernels.len()).unwrap_or(u32::MAX));
        for (index, (entry, name)) in (0..).zip(&kernels) {
            write_info(list.reborrow().get(index), entry, name);
        }
        Ok(())
    }

    async fn remove(self: Rc<Self>, params: kernel_store::RemoveParams, _: kernel_store::RemoveResults) -> Done {
        let reference = text("remove a kernel", "ref", params.get()?.get_ref()?)?;
        Ok(self.0.service.remove(reference).await?)
    }
}

struct Kernel {
    kernel: Arc<store::Kernel>,
    link: Link,
}

impl kernel::Server for Kernel {
    async fn info(self: Rc<Self>, _: kernel::InfoParams, mut results: kernel::InfoResults) -> Done {
        write_info(results.get().init_info(), &self.kernel.entry, &self.kernel.name);
        Ok(())
    }

    async fn open(self: Rc<Self>, _: kernel::OpenParams, mut results: kernel::OpenResults) -> Done {
        let sealed = self.link.service.open(&self.kernel).await?;
        let token = self.link.lane.offer(sealed, self.link.peer)?;
        token.write(results.get().init_image());
        Ok(())
    }
}

fn write_info(mut to: kernel_info::Builder, entry: &Entry, name: &str) {
    to.set_digest(entry.digest.to_string());
    to.set_alias(name);
    to.set_size(entry.size);
    to.set_entry(entry.facts.entry);
    to.set_load_start(entry.facts.load_start);
    to.set_load_end(entry.facts.load_end);
    to.set_pvh_entry(entry.facts.pvh_entry);
    to.set_version(&entry.facts.version);
    to.set_machine(Machine::X8664);
    to.set_imported(entry.imported);
}
