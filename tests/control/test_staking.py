"""Trading under proof of stake: golden values, the Bellman equation, shapes, limits, formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scoretune.commands.reproduce import staking_history, staking_trade
from scoretune.commands.reproduce.staking_history import read_prices
from scoretune.commands.reproduce.staking_problems import CONCAVE, CONVEX, NOTHING
from scoretune.control.problems.staking import (
    GrowingSupply,
    Leg,
    PowerSupply,
    Price,
    RiskControl,
    StakeParity,
    Staking,
    Utility,
    Valuation,
    capped_cost,
    simulate,
    solve,
    solve_with_price,
    time_to_parity,
    walk,
    worth,
)
from scoretune.core.errors import UserError

BUY, SELL, HOLD = ([Leg(0.0, rate)] for rate in (1.0, -1.0, 0.0))

LINEAR = [  # price, value, strategy, switch
    (Price(start=0.8), 58.96161, "buy", []),
    (Price(start=3), 61.15101, "sell", []),
    (Valuation(level=200), 53.44650, "buy, then sell", [2.55316]),
    (Price(start=2.8, growth=-0.3), 53.44778, "sell, then buy", [0.6921]),
    (Price(start=0.9, growth=0.06), 57.28533, "buy, then sell", [4.3091]),
    (Price(start=1.6), 54.56187, "buy, then sell", [2.683]),
]


@pytest.mark.parametrize(("price", "value", "strategy", "switches"), LINEAR)
def test_linear_utilities(price, value, strategy, switches):
    problem = Staking(price=price)
    best = problem.optimum()
    assert best.value == pytest.approx(value, abs=2e-5)
    assert best.strategy.startswith(strategy)
    assert best.switches == pytest.approx(switches, abs=1e-3)
    assert problem.value(best.legs) == pytest.approx(best.value, abs=1e-9)
    assert best.value >= max(map(problem.value, (BUY, SELL, HOLD)))
    surface = solve(problem, steps=60)
    assert surface.value == pytest.approx(best.value, abs=1e-3)
    assert problem.value(surface.legs()) <= best.value + 1e-9


def test_the_worth_of_a_share_and_holding_it():
    levels = worth(Staking(), np.array([0, 2.5, 5]))
    assert levels == pytest.approx([256.99994, 201.29589, 136.46940], abs=1e-4)
    assert Staking().value(HOLD) == pytest.approx(51.39999, abs=1e-4)


def test_the_lattice_converges_and_its_residual_falls():
    problem = Staking(price=Valuation(level=200), running=Utility(weight=0.3, power=0.5))
    best = problem.optimum().value
    coarse, fine = (solve(problem, steps=n) for n in (25, 100))
    assert abs(fine.value - best) < abs(coarse.value - best) / 4  # first order, at least
    assert fine.residual() < coarse.residual() / 3


def test_the_shape_of_strategies(monkeypatch):
    """Sign changes of A − P_β go from + to − where the bracket is >= 0, back where it is <= 0."""
    tally = staking_trade.shapes(400)
    assert tally["violations"] == 0
    assert tally["rising"] > 200 and tally["falling"] > 20

    def mirrored(problem, t):  # the opposite sign of A − P_β
        return 2 * problem.valuation(t) - worth(problem, t)

    monkeypatch.setattr(staking_trade, "worth", mirrored)
    assert staking_trade.shapes(400)["violations"] > 100


@pytest.mark.parametrize("price", [Price(start=0.9, growth=0.06), Valuation(level=140, growth=0.1)])
@pytest.mark.parametrize("supply", [PowerSupply(exponent=0.7), GrowingSupply(rate=0.05)])
def test_the_bracket_is_the_drift_of_the_valuation(price, supply):
    """e^{βt}P_β′/N + ℓ, and the time at which the supply's clock shows κ, back again."""
    problem = Staking(price=price, supply=supply)
    t, step = np.linspace(0.1, 4.9, 9), 1e-5
    change = (problem.valuation(t + step) - problem.valuation(t - step)) / (2 * step)
    drift = np.exp(problem.discount * t) * change / supply.at(t) + problem.running.weight
    assert problem.bracket(t) == pytest.approx(drift, abs=1e-8)
    assert problem.time_at(supply.clock(t)) == pytest.approx(t, abs=1e-9)


def test_convex_utilities_never_hold():
    for level, strategy, buy, sell in (
        (250, "buy", 37.9211, 30.3136),
        (350, "sell", 31.2544, 36.9803),
    ):
        problem = Staking(price=Valuation(level=level), running=NOTHING, terminal=CONVEX)
        best = problem.optimum()
        assert best.strategy == strategy
        assert best.value == pytest.approx(max(buy, sell), abs=1e-4)
        assert problem.value(BUY) == pytest.approx(buy, abs=1e-4)
        assert problem.value(SELL) == pytest.approx(sell, abs=1e-4)
        assert problem.value(HOLD) == pytest.approx(30.70561, abs=1e-4)
    c = math.exp(-0.5) * 225**2 / 40
    tie = Staking(price=Valuation(level=2 * c * 0.2), running=NOTHING, terminal=CONVEX)
    assert tie.price.level == pytest.approx(307.056, abs=1e-3)
    assert tie.value(BUY) == pytest.approx(tie.value(SELL)) == pytest.approx(34.11735, abs=1e-4)
    constant = Staking(price=Price(start=1), running=NOTHING, terminal=CONVEX)
    assert constant.optimum().value == pytest.approx(46.71837, abs=1e-4)


def test_concave_utilities():
    for price, value, share in (
        (Price(start=1), 41.54203, 0.17128),
        (Price(start=0.5), 43.04697, 0.26667),
        (Price(start=1.6, growth=-0.35), 42.79234, None),
    ):
        problem = Staking(price=price, running=NOTHING, terminal=CONCAVE)
        best = problem.optimum()
        assert best.value == pytest.approx(value, abs=1e-3)
        assert solve(problem, steps=60).value == pytest.approx(value, abs=1e-3)
        if share:
            assert problem.shares(best.legs, np.array(5.0)) == pytest.approx(share, abs=1e-4)


def test_at_a_fair_price_only_the_final_share_matters():
    problem = Staking(price=Valuation(level=100), running=NOTHING, terminal=CONCAVE)
    best = problem.optimum()
    end = float(problem.shares(best.legs, np.array(5.0)))
    assert (best.value, end) == pytest.approx((40.693219, 0.2069322), abs=1e-6)
    move, clock = (end - 0.2) / 2, problem.supply.clock

    def until(goal):  # the time at which κ is the goal
        return 1 / (0.1 - goal) - 10

    buy_and_hold = [Leg(0, 1), Leg(until(move), 0)]
    buy_and_sell = [Leg(0, 1), Leg(until((move + clock(np.array(5.0))) / 2), -1)]
    for legs in (buy_and_hold, buy_and_sell):
        assert problem.value(legs) == pytest.approx(best.value, abs=1e-6)


def test_concave_running_utilities_at_a_price_that_never_falls():
    for growth, value, switch in ((0.0, 34.1640, 3.74), (0.05, 34.7874, 1.21)):
        running = Utility(weight=0.3, power=0.5)
        best = Staking(price=Valuation(level=140, growth=growth), running=running).optimum()
        assert best.value == pytest.approx(value, abs=1e-4)
        assert best.switches == pytest.approx([switch], abs=0.01)


def test_a_volatile_price_is_worth_more():
    values = [
        Staking(price=Price(start=1.6, volatility=s)).optimum().value for s in (0.2, 0.4, 0.8)
    ]
    assert values == pytest.approx([55.77627, 58.00234, 62.60055], abs=1e-4)
    assert Staking(price=Price(start=1.6)).optimum().value < values[0]
    drawn = simulate(Staking(price=Price(start=1.6, volatility=0.4)), paths=3000, steps=80)
    assert drawn.mean() == pytest.approx(58.002, abs=4 * drawn.std() / math.sqrt(3000))


def test_what_is_infeasible_is_not_reported():
    problem = Staking(stake=2, price=Price(start=3))
    with pytest.raises(UserError, match="infeasible, it takes the share to -"):
        problem.value(SELL)  # the formula without limits would say 14.891
    best = problem.optimum()
    assert best.value == pytest.approx(11.42185, abs=2e-5)
    assert best.switches == pytest.approx([1.32075], abs=1e-3)
    assert solve(problem, steps=100).value == pytest.approx(best.value, abs=1e-3)
    five = Staking(stake=5, price=Price(start=3)).optimum()
    assert (five.value, *five.switches) == pytest.approx((21.70633, 0.43478), abs=1e-4)
    falling = Staking(stake=2, price=Price(start=3, growth=-0.5)).optimum()
    assert falling.method == "the Bellman equation" and falling.error < 1e-2


def test_risk_control():
    problem = RiskControl()
    golden = (0.270156, 0.190230, 0.298058, 1.954528, -1.095388, -1.598995)
    assert tuple(problem.solution()) == pytest.approx(golden, abs=1e-6)
    assert problem.value(5, 0.9) == pytest.approx(4.787589, abs=1e-6)
    assert problem.value(8, 1.2) == pytest.approx(6.118571, abs=1e-6)
    assert problem.blurred(8, 1.2, std=0.5) == pytest.approx(5.493571, abs=1e-6)
    free = RiskControl(risk=0)
    assert free.rate(3, 0.4) == pytest.approx(1 - 0.4)
    assert free.value(5, 0.9) == pytest.approx(5.070455, abs=1e-6)
    drawn = staking_trade.quadratic(200)
    assert drawn["residual"] < 1e-10
    assert drawn["wrong"] == 0


def test_stake_parity():
    parity = StakeParity()
    assert (parity.curvature, parity.gain) == pytest.approx((0.682549, 1.365097), abs=1e-6)
    assert parity.cost(1) == pytest.approx(0.989695, abs=1e-6)
    assert parity.blurred_cost(0.2, 0.5) == pytest.approx(3.583, abs=1e-3)
    assert parity.blurred_cost(parity.gain, 0.0) == pytest.approx(parity.cost(1))
    slow = StakeParity(discount=0.1)
    at = [slow.curvature_at(t, horizon=5, supply=PowerSupply()) for t in (0.0, 2.5)]
    assert at == pytest.approx([0.782438, 0.760587], abs=1e-6)
    long = parity.curvature_at(0, horizon=40, supply=GrowingSupply(rate=0.05))
    assert long == pytest.approx(parity.curvature, abs=1e-9)
    assert time_to_parity(distance=2, cap=1, growth=0.05) == pytest.approx(2.10721, abs=1e-5)
    assert capped_cost(distance=2, cap=1, growth=0.05, discount=0.2) == pytest.approx(2.6, abs=1e-5)
    assert time_to_parity(distance=30, cap=1, growth=0.05) == math.inf
    for weight in (1e-4, 3e-3, 0.1):  # reverts where the closed loop's rate is negative
        weak = StakeParity(weight=weight, growth=0.09)
        assert weak.reverts == (weak.growth - weak.gain < 0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Staking(stake=-1), "stake must be from 0 to the supply 100, got -1"),
        (lambda: Staking(horizon=-1), "horizon must be finite and > 0"),
        (lambda: Staking(discount=0), "discount must be finite and > 0"),
        (lambda: Price(start=0), "price: start must be finite and > 0"),
        (lambda: Valuation(level=-3), "level must be finite and > 0"),
        (lambda: Utility(weight=-1), "weight must be finite and >= 0"),
        (lambda: Utility(power=0), "power must be finite and > 0"),
        (lambda: Staking().value([Leg(0, 2)]), "a rate must be from -1 to 1"),
        (lambda: GrowingSupply(rate=-1), "rate must be finite and >= 0"),
        (lambda: RiskControl(growth=0.1), "growth must be < discount/2"),
        (lambda: StakeParity(weight=0), "weight must be > 0"),
        (lambda: StakeParity().blurred_cost(-1, 0), "no finite cost"),
        (lambda: capped_cost(distance=30, cap=1, growth=0.05, discount=0.2), "not reached"),
        (lambda: solve(Staking(), steps=1), "at least 2 steps"),
        (lambda: solve(Staking(price=Price(volatility=1))), "the price is volatile"),
        (lambda: solve_with_price(Staking()), "the price has no volatility"),
        (lambda: walk(Staking(), np.arange(3.0), np.array([1.0, 0.0, 1.0])), "a price > 0"),
        (lambda: simulate(Staking(), paths=0), "paths and steps must be at least 1"),
    ],
)
def test_what_is_wrong_is_one_line(wrong, says):
    with pytest.raises(UserError, match=says) as caught:
        wrong()
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300


def test_the_bellman_equation_in_share_and_price():
    """First order towards the strip of straddles; no strategy that is played beats it."""
    problem = Staking(price=Price(start=1.6, volatility=0.4))
    best = problem.optimum().value
    coarse, fine = (solve_with_price(problem, steps=n) for n in (10, 20))
    assert abs(fine.value - best) < 0.6 * abs(coarse.value - best) < 0.2
    assert fine.residual < coarse.residual / 2
    played = fine.play(paths=2000)
    assert played.mean() < best + 4 * played.std() / math.sqrt(2000)
    assert played.mean() > best - 0.3 - 4 * played.std() / math.sqrt(2000)
    assert fine.reached(0).sum() == 1 and fine.reached(20).all()


def test_without_volatility_the_price_says_nothing():
    tiny = Staking(price=Price(start=1, volatility=1e-3), running=NOTHING, terminal=CONCAVE)
    still = Staking(price=Price(start=1), running=NOTHING, terminal=CONCAVE)
    assert solve_with_price(tiny, steps=20).value == pytest.approx(
        solve(still, steps=20).value, abs=1e-4
    )


def test_watching_a_price_is_worth_something_to_who_is_not_linear():
    volatile = Staking(price=Price(start=1, volatility=0.4), running=NOTHING, terminal=CONCAVE)
    best = volatile.optimum()
    assert best.method == "the Bellman equation in share and price" and best.legs == ()
    assert best.value == pytest.approx(43.77, abs=0.05) and best.error < 0.2
    assert best.value > 41.54203 + 1  # of the price's mean, which does not move


def test_a_walk_along_prices_is_the_value_along_them():
    """At the model's own prices the rule earns the closed form, and buying throughout its value."""
    problem = Staking(price=Price(start=0.9, growth=0.06))
    times = np.linspace(0, 5, 1001)
    prices = problem.prices(times)
    best = problem.optimum()
    assert walk(problem, times, prices).value(problem) == pytest.approx(best.value, abs=1e-3)
    bought = walk(problem, times, prices, np.ones(1000))
    assert bought.value(problem) == pytest.approx(problem.value(BUY), abs=1e-3)
    assert bought.value(problem, 1.0) == pytest.approx(problem.value(BUY), abs=1e-3)  # h = 1


def test_prices_of_a_file(tmp_path):
    file = tmp_path / "price.csv"
    file.write_text("Date,Open,Close\n2024-01-01,1,2.5\n2024-01-02,null,null\n", encoding="utf-8")
    assert read_prices(file) == {"2024-01-01": 2.5}
    for text, says in (
        ("day,close\n2024-01-01,1\n", "needs a column `date` and a column `close`"),
        ("date,price\n2024-01-01,-1\n", "prices must be finite and > 0"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=says):
            read_prices(file)


def test_a_gbm_is_fitted_on_the_dates_that_there_are(tmp_path):
    """Weeks may be missing: 60 drawn at a volatility of 0.5, of which one is left out."""
    random, days = np.random.default_rng(0), np.delete(np.arange(61) * 7, 30)
    dates = [str(np.datetime64("2021-01-02") + np.timedelta64(int(day))) for day in days]
    walked = np.cumsum(np.sqrt(np.diff(days) / 365.25) * 0.5 * random.standard_normal(59))
    prices = 20 * np.exp(np.concatenate([[0.0], walked]))
    stakes = np.tile([100.0, 40.0, 10.0, 30.0], 60)
    np.savez(
        tmp_path / staking_history.STAKES,
        dates=np.array(dates),
        offsets=np.arange(61) * 4,
        own_stake_avax=stakes,
        delegated_avax=0 * stakes,
    )
    rows = "\n".join(f"{day},{price}" for day, price in zip(dates, prices, strict=True))
    (tmp_path / "price.csv").write_text(f"date,close\n{rows}\n", encoding="utf-8")
    numbers = staking_history.history(str(staking_history.check_folder(str(tmp_path))))
    fitted = numbers["walk"]
    assert fitted["volatility"] == pytest.approx(0.5, abs=0.12)
    assert fitted["span"] == [dates[0], dates[-1]]
    assert numbers["largest"] == pytest.approx(100 / 180)
    _, buying, expected, *values = fitted["rows"][0]
    assert 0 <= buying <= 1 and expected > 0 and len(values) == 8
    (tmp_path / "price.csv").write_text("date,close\n2021-01-02,3\n", encoding="utf-8")
    with pytest.raises(UserError, match="has prices of 1 of the 60 weeks"):
        staking_history.history(str(tmp_path))
    with pytest.raises(UserError, match="has no avalanche"):
        staking_history.check_folder(str(tmp_path / "nowhere"))
