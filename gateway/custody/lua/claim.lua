-- Keep a value for whoever comes first.
-- KEYS  string    ARGV  value, milliseconds to keep it
-- returns the value of whoever came first, or '' where that is this call
local first = redis.call('GET', KEYS[1])
if first then return first end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ''
