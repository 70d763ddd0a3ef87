#include <capnp/rpc-twoparty.h>
#include <kj/async-io.h>
#include <cstdio>

#include "addresses.capnp.h"

int main() {
  auto io = kj::setupAsyncIo();
  auto address = io.provider->getNetwork().parseAddress("unix:/run/volt-vmm/ipamd.sock").wait(io.waitScope);
  auto link = address->connect().wait(io.waitScope);
  capnp::TwoPartyClient client(*link);
  auto ipam = client.bootstrap().castAs<volt::Ipam>();

  auto pool = ipam.poolRequest();
  pool.setNetwork("volt0");
  auto allocator = pool.send().getPool().allocatorRequest();
  allocator.setMaxLeases(1);
  auto allocate = allocator.send().getAllocator().allocateRequest();
  allocate.setWorkload("vm-from-cpp");
  auto lease = allocate.send().wait(io.waitScope).getLease();  // ours until released, dropped, or this process ends
  auto info = lease.infoRequest().send().wait(io.waitScope);
  printf("%s\n", info.getInfo().getAddress().cStr());
  lease.releaseRequest().send().wait(io.waitScope);
}
