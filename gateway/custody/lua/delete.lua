-- KEYS  what is deleted
return redis.call('DEL', unpack(KEYS))
