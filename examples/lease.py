import asyncio, capnp
addresses = capnp.load("schema/addresses.capnp")

async def main():
    link = await capnp.AsyncIoStream.create_unix_connection("/run/volt-vmm/ipamd.sock")
    ipam = capnp.TwoPartyClient(link).bootstrap().cast_as(addresses.Ipam)
    pool = (await ipam.pool("volt0")).pool
    allocator = (await pool.allocator(1)).allocator
    lease = (await allocator.allocate("vm-from-python")).lease
    print((await lease.info()).info.address)      # ours until released, dropped, or this process ends
    await lease.release()

asyncio.run(capnp.run(main()))
