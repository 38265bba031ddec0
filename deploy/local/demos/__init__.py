"""One file a method: `async def show(visitors, exhibit)` calls it once and says whether the result is right."""
