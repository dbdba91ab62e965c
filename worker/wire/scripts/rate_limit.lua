#!lua
-- A token bucket of a tenant: `size` of a `unit` fill it in `window` seconds, `cost` is to be taken.
-- Nothing is taken where that is not there; more than the size is the size.
-- Returns {1 or 0: may pass, left, milliseconds until it is full, milliseconds to wait}.
local key = dfl .. ':rl:' .. args.unit .. ':' .. args.tenant
local size, window_ms, now_ms = args.size, args.window * 1000, now * 1000
local cost = math.min(args.cost, size)
local bucket = redis.call('HMGET', key, 'left', 'at_ms')
local left, at_ms = tonumber(bucket[1]) or size, tonumber(bucket[2]) or now_ms
left = math.min(size, left + math.max(0, now_ms - at_ms) * size / window_ms)
local passes = left >= cost
if passes then left = left - cost end
redis.call('HSET', key, 'left', string.format('%.6f', left), 'at_ms', string.format('%.3f', now_ms))
redis.call('PEXPIRE', key, math.ceil(window_ms))
local wait_ms = passes and 0 or (cost - left) * window_ms / size
return {passes and 1 or 0, math.floor(left), math.ceil((size - left) * window_ms / size), math.ceil(wait_ms)}
