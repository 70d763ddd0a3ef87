// What schema/limits.capnp and schema/addresses.capnp say of limits, tried from both sides in C++ against an ipamd: the path of its socket is the argument.
// Prints a line for each thing that holds; what does not ends it with what was seen.

#include <capnp/rpc-twoparty.h>
#include <kj/async-io.h>
#include <kj/debug.h>
#include <kj/string.h>
#include <cstdio>
#include <string>

#include "addresses.capnp.h"
#include "limits.capnp.h"

// The code of a failure, read as errors.capnp says.
template <typename T>
std::string codeOf(kj::WaitScope &scope, kj::Promise<T> &&promise) {
  std::string code = "none";
  promise.then([](auto &&) {}, [&](kj::Exception &&error) {
    std::string text = error.getDescription().cStr();
    const std::string remote = "remote exception: ";
    while (text.compare(0, remote.size(), remote) == 0) text.erase(0, remote.size());
    code = text.substr(0, text.find(':'));
  }).wait(scope);
  return code;
}

struct Connection {
  kj::Own<kj::AsyncIoStream> stream;
  capnp::TwoPartyClient client;
  volt::Ipam::Client ipam;

  Connection(kj::AsyncIoContext &io, const char *path)
      : stream(io.provider->getNetwork().parseAddress(kj::str("unix:", path)).wait(io.waitScope)->connect().wait(io.waitScope)),
        client(*stream), ipam(client.bootstrap().castAs<volt::Ipam>()) {}

  std::string alive(kj::WaitScope &scope) { return codeOf(scope, ipam.listRequest().send()); }

  volt::Pool::Client pool(kj::StringPtr config) {
    auto request = ipam.definePoolRequest();
    request.setConfig(config);
    return request.send().getPool();
  }
};

auto allocator(volt::Pool::Client &pool, uint32_t leases) {
  auto request = pool.allocatorRequest();
  request.setMaxLeases(leases);
  return request.send();
}

auto allocate(volt::Allocator::Client &allocator, kj::StringPtr workload) {
  auto request = allocator.allocateRequest();
  request.setWorkload(workload);
  return request.send();
}

// In portions: Cap'n Proto 0.9 recurses once for each message that waits to be written.
template <typename T>
void letGo(kj::Vector<T> &held, Connection &connection, kj::WaitScope &scope) {
  while (held.size() > 0) {
    for (int n = 0; n < 64 && held.size() > 0; n++) held.removeLast();
    connection.alive(scope);
  }
}

#define EXPECT(value, wanted) do { auto seen = (value); KJ_REQUIRE(seen == (wanted), seen, #value); } while (0)

int main(int, char **arguments) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  auto io = kj::setupAsyncIo();
  auto &scope = io.waitScope;
  const char *path = arguments[1];
  auto config = kj::str("{\"network\":\"big\",\"subnet\":\"10.64.0.0/16\"}");

  {  // The first answer is dropped while the call on it is under way, so that it is finished before it is returned.
    Connection connection(io, path);
    auto pool = connection.pool(config);
    auto from = allocator(pool, 1000).getAllocator();
    for (int round = 0; round < 250; round++) {
      kj::Vector<kj::Promise<void>> released;
      for (int n = 0; n < 32; n++) {
        auto release = allocate(from, kj::str("pair-", n)).getLease().releaseRequest().send();
        released.add(release.ignoreResult());
      }
      for (auto &one : released) one.wait(scope);
    }
    EXPECT(connection.alive(scope), "none");
    printf("8000 pairs\n");
  }
  {  // A second bootstrap fails that call; what the connection holds stays.
    Connection connection(io, path);
    auto pool = connection.pool(config);
    auto from = allocator(pool, 1).getAllocator();
    auto lease = allocate(from, "kept").wait(scope).getLease();
    auto again = connection.client.bootstrap().castAs<volt::Ipam>();
    EXPECT(codeOf(scope, again.listRequest().send()), "permissionDenied");
    EXPECT(codeOf(scope, lease.infoRequest().send()), "none");
    EXPECT(codeOf(scope, lease.releaseRequest().send()), "none");
    printf("bootstrap once\n");
  }
  {  // As many leases as an allocator may have, and one more.
    Connection connection(io, path);
    auto pool = connection.pool(config);
    EXPECT(codeOf(scope, allocator(pool, 0)), "invalidArgument");
    EXPECT(codeOf(scope, allocator(pool, volt::MAX_LEASES)), "none");
    EXPECT(codeOf(scope, allocator(pool, volt::MAX_LEASES + 1)), "invalidArgument");
    auto from = allocator(pool, 2).getAllocator();
    auto first = allocate(from, "one").wait(scope).getLease();
    auto second = allocate(from, "two").wait(scope).getLease();
    EXPECT(codeOf(scope, allocate(from, "three")), "exhausted");
    EXPECT(codeOf(scope, first.releaseRequest().send()), "none");
    EXPECT(codeOf(scope, allocate(from, "three")), "none");
    printf("leases\n");
  }
  {  // As many capabilities as a connection may hold, each in an answer that is held as well, and one more.
    Connection connection(io, path);
    auto pool = connection.pool(config);
    pool.infoRequest().send().wait(scope);
    kj::Vector<capnp::Response<volt::Pool::AllocatorResults>> held;
    std::string code = "none";
    while (code == "none" && held.size() < volt::MAX_CAPABILITIES + 10) {
      kj::Vector<kj::Promise<void>> asked;
      for (int n = 0; n < 64; n++) {
        asked.add(allocator(pool, 1).then([&](auto &&answer) { held.add(kj::mv(answer)); }, [&](kj::Exception &&error) {
          code = kj::str(error.getDescription()).cStr();
        }));
      }
      for (auto &one : asked) one.wait(scope);
    }
    // The pool, and perhaps the bootstrap capability, are held as well.
    KJ_REQUIRE(held.size() + 2 >= volt::MAX_CAPABILITIES && held.size() < volt::MAX_CAPABILITIES, held.size(), code);
    EXPECT(codeOf(scope, allocator(pool, 1)), "exhausted");
    EXPECT(connection.alive(scope), "none");
    held.removeLast();
    EXPECT(codeOf(scope, allocator(pool, 1)), "none");
    letGo(held, connection, scope);
    printf("capabilities\n");
  }
  {  // More calls at one time than run at one time: none fails.
    Connection connection(io, path);
    kj::Vector<kj::Promise<void>> asked;
    for (uint32_t n = 0; n < 10 * volt::MAX_CALLS_IN_FLIGHT; n++) asked.add(connection.ipam.listRequest().send().ignoreResult());
    for (auto &one : asked) one.wait(scope);
    printf("calls\n");
  }
  {  // A message of the longest length, and one that is longer, which ends its connection.
    Connection connection(io, path);
    auto words = [&](uint32_t words) {
      auto request = connection.ipam.definePoolRequest();
      auto text = kj::heapString(words * 8);
      memset(text.begin(), ' ', text.size());
      request.setConfig(text);
      return codeOf(scope, request.send());
    };
    EXPECT(words(volt::MAX_MESSAGE_WORDS - 100), "invalidArgument");
    EXPECT(connection.alive(scope), "none");
    KJ_REQUIRE(words(volt::MAX_MESSAGE_WORDS) != "none");
    KJ_REQUIRE(connection.alive(scope) != "none");
    printf("messages\n");
  }
  {  // As many connections as a process may have, and one more.
    kj::Vector<kj::Own<Connection>> held;
    while (held.size() < volt::MAX_CONNECTIONS_PER_PROCESS) {
      held.add(kj::heap<Connection>(io, path));
      EXPECT(held.back()->alive(scope), "none");
    }
    EXPECT(Connection(io, path).alive(scope), "exhausted");
    held.removeLast();
    while (Connection(io, path).alive(scope) == "exhausted") {}
    printf("connections\n");
  }
}
