-- Jobs that not every worker of their model can run: docs/decisions/0014.
-- A job waits where all of its model wait, until a worker comes to it that has not got what it
-- needs: a mode, or the weights that began its output. That worker puts it into a queue of its own
-- kind, `<queue>.<needs>`, from which only those take that have it all.
local route = {}
local pool = args.queues[1] -- names the model
local SPECIAL = dfl .. ':special:' .. pool

local function parts_of(needs) return string.gmatch(needs, '[^.]+') end

-- Say whether one worker has all this, as far as that is known: it may be two.
function route.is_offered(needs)
  for need in parts_of(needs) do
    local lasts = redis.call('ZSCORE', dfl .. ':offers:' .. pool, need)
    if not lasts or tonumber(lasts) < now then return false end
  end
  return true
end

-- The queue of `args.queues` to which a special one belongs, and what its jobs need.
local function split(special)
  for index, queue in ipairs(args.queues) do
    if string.sub(special, 1, #queue + 1) == queue .. '.' then
      return index, string.sub(special, #queue + 2)
    end
  end
end

function route.special_queues() return redis.call('SMEMBERS', SPECIAL) end

-- All queues from which a worker with these `offers` may take, the most urgent first.
function route.queues_for(offers)
  local own = {}
  for _, special in ipairs(route.special_queues()) do
    local index, needs = split(special)
    local has_all = index ~= nil
    for need in parts_of(needs or '') do has_all = has_all and offers[need] end
    if has_all then own[index] = {special, own[index]} end
  end
  local queues = {}
  for index, queue in ipairs(args.queues) do
    local rest = own[index]
    while rest do
      queues[#queues + 1] = rest[1]
      rest = rest[2]
    end
    queues[#queues + 1] = queue
  end
  return queues
end

-- Move a job, just taken from its queue, to those who can run it.
function route.pass_on(job, needs)
  local index = split(job.queue .. '.')
  local queue = args.queues[index] .. '.' .. needs
  redis.call('HSET', job_key(job.id), 'origin', queue)
  local list = rq .. ':queue:' .. queue
  local turn = tonumber(redis.call('HGET', job_key(job.id), 'dfl_turn') or 0)
  fair.insert(list, job.id, turn, redis.call('LLEN', list))
  redis.call('SADD', rq .. ':queues', list)
  redis.call('SADD', SPECIAL, queue)
  keep_at_least(SPECIAL, job.keep + 3600)
  redis.call('PUBLISH', dfl .. ':wake:' .. args.queues[index], queue)
end

-- For the reaper: special queues in which jobs wait or run, known or not. RQ's requeue may put one
-- into a queue of which nothing was left.
function route.find_special()
  local is_ours = {}
  for _, queue in ipairs(args.queues) do is_ours[queue] = true end
  for _, list in ipairs(redis.call('SMEMBERS', rq .. ':queues')) do
    local queue = string.sub(list, #rq + 8)
    local base = base_of(queue)
    if base ~= queue and is_ours[base]
      and redis.call('EXISTS', list, rq .. ':wip:' .. queue) > 0 then
      redis.call('SADD', SPECIAL, queue)
      keep_at_least(SPECIAL, 86400)
    end
  end
end

local KEYS_OF_A_QUEUE = {'queue', 'wip', 'deferred', 'finished', 'failed', 'canceled'}

-- For the reaper: a special queue of which nothing is left, no record of a job either. RQ's list
-- of queues goes on to name it: its requeue takes a job off its registry first and queues it then.
function route.drop_if_unused(special)
  local names = {}
  for index, name in ipairs(KEYS_OF_A_QUEUE) do names[index] = rq .. ':' .. name .. ':' .. special end
  if redis.call('EXISTS', unpack(names)) == 0 then redis.call('SREM', SPECIAL, special) end
end

-- For the reaper: nobody is left who could run these.
function route.fail_unserved(special)
  local list, _, needs = rq .. ':queue:' .. special, split(special)
  if not needs or redis.call('EXISTS', list) == 0 or route.is_offered(needs) then return end
  for _ = 1, 256 do
    local id = redis.call('LPOP', list)
    if not id then return end
    local job = read_job(id)
    if job.status == 'queued' then finish(job, failure(job, args.lacking)) end
  end
end
