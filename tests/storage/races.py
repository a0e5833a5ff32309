"""What every store that keeps claims has to stand: many writers that create the same object at once."""

import asyncio

WRITERS = 8


def check_that_one_wins_each(store, races):
    """Have writers race for objects, and find one winner for each, whose bytes are there."""

    async def race(number):
        claims = [
            store.create_async(f"claims/{number}", f"writer {writer}".encode()) for writer in range(WRITERS)
        ]
        return await asyncio.gather(*claims)

    async def all_races():
        return await asyncio.gather(*map(race, range(races)))

    for number, won in enumerate(asyncio.run(all_races())):
        assert won.count(True) == 1
        assert store.get(f"claims/{number}") == f"writer {won.index(True)}".encode()
