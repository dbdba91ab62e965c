-- Who is served next, and how many of a key's jobs may wait and run: docs/decisions/0014.
-- Put in after lib.lua, which calls some of this.

local function shares_key(queue) return dfl .. ':shares:' .. queue end
local function running_key(tenant) return dfl .. ':running:' .. tenant end
local function waiting_key(tenant) return dfl .. ':queued:' .. tenant end
local function lanes_key(tenant) return dfl .. ':lanes:' .. tenant end
local function lane_key(tenant, queue) return dfl .. ':lane:' .. tenant .. ':' .. queue end
fair.FIRST = -1 -- the turn of what comes back: all others are 0 or later
local TENANTS_WITH_LANES = dfl .. ':lanes'

local function turn_at(list, index)
  local id = redis.call('LINDEX', list, index)
  return id and tonumber(redis.call('HGET', job_key(id), 'dfl_turn') or 0), id
end

-- Start-time fair queueing: a job's turn is when the key's job before it is through, counted in
-- places given, or now, if the key has none. `''` is no key: its score is the turn served last.
function fair.turn_of(queue, tenant, cost, length)
  local shares = shares_key(queue)
  if length == 0 then redis.call('DEL', shares) end
  local turns = redis.call('ZMSCORE', shares, '', tenant)
  -- Not known while nothing was served since the queue was empty; or it has got lost.
  local served = turns[1] or (length > 0 and turn_at(rq .. ':queue:' .. queue, 0)) or 0
  local turn = math.max(0, tonumber(served), tonumber(turns[2] or 0))
  if redis.call('ZADD', shares, turn + cost, tenant) == 1 then
    redis.call('EXPIRE', shares, 86400)
  end
  return turn
end

-- A full queue takes one job yet of each key that has none in it: else the queue of one key would
-- keep out all others.
function fair.may_exceed(queue, tenant)
  if redis.call('EXISTS', lane_key(tenant, queue)) == 1 then return false end -- it has deferred ones
  local turns = redis.call('ZMSCORE', shares_key(queue), '', tenant)
  return not turns[2] or (turns[1] and tonumber(turns[2]) <= tonumber(turns[1]))
end

-- Put a job behind all whose turn is not after its own; returns how many those are.
function fair.insert(list, id, turn, length)
  if length == 0 or turn_at(list, -1) <= turn then
    redis.call('RPUSH', list, id)
    return length
  end
  local low, high, pivot = 0, length - 1, redis.call('LINDEX', list, -1)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local its_turn, its_id = turn_at(list, middle)
    if its_turn > turn then
      high, pivot = middle, its_id
    else
      low = middle + 1
    end
  end
  redis.call('LINSERT', list, 'BEFORE', pivot, id)
  return low
end

-- Turns up to this one have been served: nobody's next job may have an earlier one.
function fair.note_served(queue, turn)
  local shares = shares_key(queue)
  redis.call('ZADD', shares, 'GT', turn, '')
  redis.call('ZREMRANGEBYSCORE', shares, '-inf', '(' .. turn)
  redis.call('EXPIRE', shares, 86400)
end

-- A job that was never served gives its turn back to its key.
function fair.refund(job)
  local shares = shares_key(base_of(job.queue))
  if job.tenant and redis.call('ZSCORE', shares, job.tenant) then
    redis.call('ZINCRBY', shares, -job.cost, job.tenant)
  end
end

function fair.is_waiting(job) return job.status == 'queued' or job.status == 'deferred' end

-- How many jobs stand before one that waits, in its own queue; false if it does not wait.
function fair.num_before(job)
  local list = rq .. ':queue:' .. job.queue
  if job.status == 'queued' then return redis.call('LPOS', list, job.id) end
  if job.status ~= 'deferred' then return false end
  local rank = redis.call('ZRANK', lane_key(job.tenant or '', job.queue), job.id)
  return rank and redis.call('LLEN', list) + rank
end

-- Jobs of a key that wait, of all queues. What RQ's tools took away is found out only when that
-- matters: when a key is about to be refused.
function fair.num_waiting(tenant, limit)
  local key = waiting_key(tenant)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  local count = redis.call('ZCARD', key)
  if count < limit then return count end
  for _, id in ipairs(redis.call('ZRANGE', key, 0, 63)) do
    local status = redis.call('HGET', job_key(id), 'status')
    if status ~= 'queued' and status ~= 'deferred' then redis.call('ZREM', key, id) end
  end
  return redis.call('ZCARD', key)
end

function fair.note_waiting(tenant, id, seconds)
  redis.call('ZADD', waiting_key(tenant), now + seconds, id)
  redis.call('EXPIRE', waiting_key(tenant), math.ceil(seconds) + 86400)
end

function fair.note_not_waiting(job)
  if job.is_counted then redis.call('ZREM', waiting_key(job.tenant), job.id) end
end

function fair.note_requeued(job)
  if job.is_counted then fair.note_waiting(job.tenant, job.id, job.timeout) end
end

-- A place that a key has taken, until the job leaves it, or nobody has renewed it for long.
function fair.hold_place(job)
  if not job.max_running then return end
  local key, seconds = running_key(job.tenant), args.lease + 60
  redis.call('ZADD', key, now + seconds, job.id .. ':' .. job.execution)
  redis.call('EXPIRE', key, math.ceil(seconds))
end

function fair.has_no_place(job)
  if not job.max_running then return false end
  local key = running_key(job.tenant)
  if job.execution ~= '' then -- rq's clean-up has put it back and left it a place
    redis.call('ZREM', key, job.id .. ':' .. job.execution)
  end
  return redis.call('ZCOUNT', key, now, '+inf') >= job.max_running
end

-- Out of the way of the others, where RQ shows what waits for other jobs to end. A key's jobs go
-- into lanes, one a queue: the job that must end first is the first to come back.
function fair.defer(job, deadline)
  local lanes, lane = lanes_key(job.tenant), lane_key(job.tenant, job.queue)
  redis.call('HSET', job_key(job.id), 'status', 'deferred')
  redis.call('ZADD', rq .. ':deferred:' .. job.queue, now, job.id)
  redis.call('ZADD', lane, tonumber(deadline or now + job.timeout), job.id)
  redis.call('SADD', lanes, job.queue)
  redis.call('SADD', TENANTS_WITH_LANES, job.tenant)
  for _, key in ipairs({lane, lanes, TENANTS_WITH_LANES}) do
    keep_at_least(key, job.keep)
  end
end

function fair.undefer(job)
  redis.call('ZREM', rq .. ':deferred:' .. job.queue, job.id)
  redis.call('ZREM', lane_key(job.tenant or '', job.queue), job.id)
end

-- To the front, but behind those that came back to it before (the first 63 of them).
local function insert_at_front(queue, id)
  local list = rq .. ':queue:' .. queue
  for index = 0, 63 do
    local turn, its_id = turn_at(list, index)
    if not its_id then break end
    if turn ~= fair.FIRST or index == 63 then
      redis.call('LINSERT', list, 'BEFORE', its_id, id)
      return
    end
  end
  redis.call('RPUSH', list, id)
end

local function release_from(tenant, queue)
  for _ = 1, 64 do -- what RQ's tools have taken away meanwhile is passed over
    local id = redis.call('ZPOPMIN', lane_key(tenant, queue))[1]
    if not id then break end
    redis.call('ZREM', rq .. ':deferred:' .. queue, id)
    if redis.call('HGET', job_key(id), 'status') == 'deferred' then
      redis.call('HSET', job_key(id), 'status', 'queued', 'dfl_turn', fair.FIRST)
      insert_at_front(queue, id)
      wake(queue)
      return
    end
  end
  if redis.call('EXISTS', lane_key(tenant, queue)) == 0 then
    redis.call('SREM', lanes_key(tenant), queue)
  end
end

-- A place of a key is free: of each lane one job may try. Which worker has room nobody knows here;
-- one too many goes back into its lane.
function fair.release(tenant)
  for _, queue in ipairs(redis.call('SMEMBERS', lanes_key(tenant))) do
    release_from(tenant, queue)
  end
end

function fair.leave_place(job)
  if not job.max_running then return end
  redis.call('ZREM', running_key(job.tenant), job.id .. ':' .. job.execution)
  fair.release(job.tenant)
end

-- For the reaper: places that nobody has told of as free, and lanes without jobs.
function fair.repair_lanes()
  for _, tenant in ipairs(redis.call('SMEMBERS', TENANTS_WITH_LANES)) do
    local queue = redis.call('SRANDMEMBER', lanes_key(tenant))
    local first = queue and redis.call('ZRANGE', lane_key(tenant, queue), 0, 0)[1]
    local job = first and read_job(first)
    if not queue then
      redis.call('SREM', TENANTS_WITH_LANES, tenant)
    elseif not job or not fair.has_no_place(job) then
      fair.release(tenant)
    end
  end
end
