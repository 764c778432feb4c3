"""How a use case declares what is fitted; the fits stand in estimators/."""

from typing import Annotated

from pydantic import Field

from penstock.training.ensemble_declarations import Ensemble as Ensemble
from penstock.training.ensemble_declarations import Member as Member
from penstock.training.single_estimators import BoostingStop as BoostingStop
from penstock.training.single_estimators import DecisionTree as DecisionTree
from penstock.training.single_estimators import IsolationForest as IsolationForest
from penstock.training.single_estimators import KMeans as KMeans
from penstock.training.single_estimators import LightGBM as LightGBM
from penstock.training.single_estimators import LogisticRegression as LogisticRegression
from penstock.training.single_estimators import Loss as Loss
from penstock.training.single_estimators import RandomForest as RandomForest
from penstock.training.single_estimators import Ridge as Ridge
from penstock.training.single_estimators import ScikitEstimator as ScikitEstimator
from penstock.training.single_estimators import SingleEstimator as SingleEstimator
from penstock.training.single_estimators import Stage as Stage
from penstock.training.single_estimators import TorchMLP as TorchMLP
from penstock.training.single_estimators import TorchModule as TorchModule
from penstock.training.single_estimators import XGBoost as XGBoost

Estimator = Annotated[SingleEstimator | Ensemble, Field(discriminator="kind")]
