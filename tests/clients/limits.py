"""What schema/limits.capnp and schema/addresses.capnp say of limits, tried from both sides in Python against an ipamd: the arguments are the
folder of the schemas and the path of its socket. Prints a line for each thing that holds."""

import asyncio
import sys

import capnp

schemas, socket = sys.argv[1:]
addresses = capnp.load(schemas + "/addresses.capnp")
limits = capnp.load(schemas + "/limits.capnp")
errors = capnp.load(schemas + "/errors.capnp")
CONFIG = '{"network":"python","subnet":"10.80.0.0/16"}'


def code_of(error):
    """The code of a failure, read as errors.capnp says."""
    text = error.description
    while text.startswith("remote exception: "):
        text = text.removeprefix("remote exception: ")
    code = text.split(":")[0]
    return code if code in errors.Code.schema.enumerants else "internal"


async def fails(promise):
    try:
        await promise
    except capnp.KjException as error:
        return code_of(error)
    return None


async def connect():
    stream = await capnp.AsyncIoStream.create_unix_connection(socket)
    client = capnp.TwoPartyClient(stream)
    return client, client.bootstrap().cast_as(addresses.Ipam)


def expect(seen, wanted, what):
    assert seen == wanted, f"{what}: {seen!r} in place of {wanted!r}"


async def leases():
    client, ipam = await connect()
    pool = (await ipam.definePool(CONFIG)).pool
    expect(await fails(pool.allocator(0)), "invalidArgument", "no leases")
    expect(await fails(pool.allocator(addresses.maxLeases)), None, "as many leases as may be")
    expect(await fails(pool.allocator(addresses.maxLeases + 1)), "invalidArgument", "one lease more")
    allocator = (await pool.allocator(maxLeases=2)).allocator
    first = (await allocator.allocate(workload="one")).lease
    second = (await allocator.allocate(workload="two")).lease
    expect(await fails(allocator.allocate(workload="three")), "exhausted", "one lease more than asked for")
    await first.release()
    expect(await fails(first.info()), "revoked", "a lease that was released")
    expect(await fails(allocator.allocate(workload="three")), None, "a lease in place of another")
    expect(await fails(ipam.pool("nowhere")), "notFound", "a pool that is not")
    await second.release()
    print("leases")


async def pipelining():
    client, ipam = await connect()
    pool = ipam.definePool(CONFIG).pool
    allocator = pool.allocator(1000).allocator
    for turn in range(100):
        await asyncio.gather(*(allocator.allocate(f"pair-{n}").lease.release() for n in range(32)))
    expect(await fails(ipam.list()), None, "after many pairs")
    print("3200 pairs")


async def bootstrap():
    client, ipam = await connect()
    pool = (await ipam.definePool(CONFIG)).pool
    lease = (await (await pool.allocator(1)).allocator.allocate("kept")).lease
    again = client.bootstrap().cast_as(addresses.Ipam)
    expect(await fails(again.list()), "permissionDenied", "a second bootstrap")
    expect(await fails(lease.info()), None, "the lease")
    await lease.release()
    print("bootstrap once")


async def capabilities():
    client, ipam = await connect()
    pool = (await ipam.definePool(CONFIG)).pool
    held, failed = [], None

    async def take():
        nonlocal failed
        try:
            held.append((await pool.allocator(1)).allocator)
        except capnp.KjException as error:
            failed = code_of(error)

    while failed is None and len(held) < limits.maxCapabilities:
        await asyncio.gather(*(take() for _ in range(limits.maxCallsInFlight)))
    expect(failed, "exhausted", "one capability more")
    # The pool and the bootstrap capability are held as well.
    assert limits.maxCapabilities - 2 <= len(held) < limits.maxCapabilities, len(held)
    expect(await fails(ipam.list()), None, "a call that takes none")
    held.pop()
    expect(await fails(pool.allocator(1)), None, "one in place of another")
    while held:
        del held[-64:]
        await ipam.list()
    print("capabilities")


async def connections():
    held = []
    while len(held) < limits.maxConnectionsPerProcess:
        held.append(await connect())
        await held[-1][1].list()
    client, ipam = await connect()
    expect(await fails(ipam.list()), "exhausted", "one connection more")
    print("connections")


async def main():
    for check in (leases, pipelining, bootstrap, capabilities):
        await check()
    await connections()


asyncio.run(capnp.run(main()))
